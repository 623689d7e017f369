// The list of all facts: search, filter, sort, one fact's answers, CSV of what is shown; where the page compares models,
// a choice of both and counts of moves. Every text of a model or of a user becomes a text node and nothing else. Only
// the rows in sight exist (a list of 50,000 is as quick as one of 50).
(() => {
  "use strict";
  const ROW = 52, AHEAD = 8;
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, style) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (style) made.className = style;
    return made;
  };

  async function unpacked() {
    const raw = atob($("facts-data").textContent.trim());
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function begin(data) {
    const count = data.question.length, answer = (i) => data.texts[data.answer[i]];
    const searched = data.question.map((question, i) => `${question}\n${answer(i)}`.toLowerCase());
    const columns = new Map(data.columns.map((column) => [column.key, column]));
    const listed = data.columns.filter((column) => column.width), filters = data.filters.map((key) => columns.get(key));
    const names = data.rows.map((row) => row.name);
    // A link holds these by name: of the search, of the filters, of the models compared, of the order.
    const first = { q: "", sort: data.sort, way: "up" };
    for (const column of filters) first[column.key] = "";
    if (data.compared) [first.from, first.to] = data.compared.map((place) => names[place]);
    const state = { ...first };
    let order = [], at = -1;

    const value = (column, i) => (column.texts ?? column.values)[i];
    const shown = (column, i) => {
      const it = value(column, i);
      if (column.texts) return it;
      if (it < 0) return "\u2013";
      return column.names ? column.names[it] : (it / 10 ** column.digits).toFixed(Math.min(column.digits, 2));
    };
    const key = (name) => {
      if (name === "fact") return (i) => data.question[i];
      const column = columns.get(name);
      if (column.by) {
        const [first, second] = column.by.map((other) => columns.get(other).values);
        return (i) => first[i] - second[i];
      }
      return (i) => value(column, i);
    };

    function build() {
      const places = (width) => ["minmax(0, 1fr)", ...listed.filter(width).map((column) => `${width(column)}rem`)].join(" ");
      const style = $("browser").style;
      style.setProperty("--fact-columns", places((column) => column.width));
      style.setProperty("--fact-columns-narrow", places((column) => column.narrow));
      for (const { key, head } of [{ key: "fact", head: "question (answer)" }, ...listed]) {
        const cell = make("span", undefined, classes(key)), button = make("button", head);
        cell.setAttribute("role", "columnheader");
        button.type = "button";
        button.dataset.key = key;
        button.addEventListener("click", () => {
          state.way = state.sort === key && state.way === "up" ? "down" : "up";
          state.sort = key;
          choose(true);
        });
        cell.append(button);
        $("facts-head").append(cell);
      }
      for (const column of filters) {
        const label = make("label", `${column.head[0].toUpperCase()}${column.head.slice(1)} `), select = make("select");
        select.id = `facts-${column.key}`;
        select.append(new Option("all", ""));
        for (const [i, name] of column.names.entries()) select.append(new Option(name, String(i)));
        select.addEventListener("change", () => { state[column.key] = column.names[select.value] ?? ""; choose(true); });
        label.append(select);
        $("facts-filters").append(label);
      }
      if (!data.compared) return;
      for (const which of ["from", "to"]) {
        const select = $(`facts-${which}`), groups = new Map();
        for (const [i, row] of data.rows.entries()) {
          if (!groups.has(row.group)) {
            const made = make("optgroup");
            made.label = row.group;
            groups.set(row.group, made);
          }
          groups.get(row.group).append(new Option(row.name, String(i)));
        }
        select.append(...groups.values());
        select.addEventListener("change", () => { state[which] = names[select.value]; compare(); choose(true); });
      }
      $("facts-pair").hidden = false;
    }

    const classes = (key) => (key === "fact" || columns.get(key).narrow ? key : `${key} wide`);

    function read() {
      const told = [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => Object.hasOwn(state, name));
      if (told.length) Object.assign(state, first, Object.fromEntries(told));
      if (state.sort !== "fact" && !columns.has(state.sort)) state.sort = data.sort;
      $("facts-search").value = state.q;
      for (const column of filters) {
        const place = column.names.indexOf(state[column.key]);
        $(`facts-${column.key}`).value = place < 0 ? "" : String(place);
      }
      if (data.compared) {
        for (const [i, which] of ["from", "to"].entries()) {
          if (!names.includes(state[which])) state[which] = names[data.compared[i]];
          $(`facts-${which}`).value = String(names.indexOf(state[which]));
        }
        compare();
      }
      return told.length > 0;
    }

    // Of the rows compared: right in both is kept, in the first alone lost, in the second alone gained.
    function compare() {
      const [before, after] = chosen().map((place) => data.rows[place].answers[0].right);
      const [lost, gained, kept, never] = ["lost", "gained", "kept", "never"].map((name) => data.moves.indexOf(name));
      columns.get("move").values = Array.from({ length: count }, (_, i) =>
        before[i] === "1" ? (after[i] === "1" ? kept : lost) : after[i] === "1" ? gained : never);
    }

    const chosen = () => (data.compared ? [names.indexOf(state.from), names.indexOf(state.to)] : []);

    function write(changed) {
      const told = new URLSearchParams(Object.entries(state).filter(([, text]) => text));
      if (changed) {
        try { history.replaceState(null, "", `#${told}`); } catch { /* a page that may not: the view stays unnamed */ }
      }
      $("facts-link").href = `#${told}`;
    }

    // ``changed``: by the reader, so that the address names the view from then on.
    function choose(changed) {
      const wanted = state.q.toLowerCase();
      const moves = columns.get("move").values, move = data.moves.indexOf(state.move);
      // Of each filter that is set but that of moves: the column's values, and the one asked for.
      const asked = [];
      for (const column of filters) {
        const place = column.names.indexOf(state[column.key]);
        if (place >= 0 && column.key !== "move") asked.push([column.values, place]);
      }
      const all = [];
      facts: for (let i = 0; i < count; i++) {
        for (const [values, place] of asked) if (values[i] !== place) continue facts;
        if (!wanted || searched[i].includes(wanted)) all.push(i);
      }
      order = move < 0 ? [...all] : all.filter((i) => moves[i] === move);
      const by = key(state.sort), keys = new Array(count), sign = state.way === "down" ? -1 : 1;
      for (const i of order) keys[i] = by(i);
      order.sort((a, b) => {
        const x = keys[a], y = keys[b];
        return sign * (x < y ? -1 : x > y ? 1 : 0) || a - b;
      });
      at = -1;
      $("facts-list").scrollTop = 0;
      const told = data.compared ? `: ${tally(order).map((n, k) => `${number(n)} ${data.moves[k]}`).filter((_, k) => move < 0 || k === move).join(", ")}` : "";
      $("facts-count").textContent = `${number(order.length)} of ${number(count)} facts${told}`;
      $("facts-list").setAttribute("aria-rowcount", String(order.length));
      for (const button of document.querySelectorAll("#facts-head button")) {
        const mine = button.dataset.key === state.sort;
        button.parentElement.setAttribute("aria-sort", !mine ? "none" : state.way === "down" ? "descending" : "ascending");
      }
      sums(all);
      write(changed);
      show();
    }

    const number = (n) => n.toLocaleString("en");

    function tally(facts) {
      const found = data.moves.map(() => 0), moves = columns.get("move").values;
      for (const i of facts) found[moves[i]]++;
      return found;
    }

    // How many facts of each group moved how, whatever move is asked for.
    function sums(facts) {
      const tables = data.groups.map((key) => {
        const column = columns.get(key), inside = column.names.map(() => []);
        for (const i of facts) if (column.values[i] >= 0) inside[column.values[i]].push(i);
        const box = make("div", undefined, "scroll"), table = make("table", undefined, "numbers dense"), head = table.createTHead().insertRow();
        for (const name of [column.head, "facts", ...data.moves]) {
          const cell = make("th", name);
          cell.scope = "col";
          head.append(cell);
        }
        const body = table.createTBody();
        for (const [place, its] of inside.entries()) {
          if (!its.length) continue;
          const line = body.insertRow();
          for (const text of [column.names[place], number(its.length), ...tally(its).map(number)]) line.append(make("td", text));
        }
        box.append(table);
        return box;
      });
      const note = "Counts of the facts in this view, whatever their move.";
      $("facts-sums").replaceChildren(...(tables.length ? [make("p", note, "soft"), ...tables] : []));
    }

    function show() {
      const list = $("facts-list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - AHEAD);
      const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + AHEAD);
      const rows = [];
      for (let place = first; place < last; place++) rows.push(row(place));
      $("facts-room").style.height = `${order.length * ROW}px`;
      $("facts-room").replaceChildren(...rows);
    }

    function row(place) {
      const i = order[place], made = make("div", undefined, `fact-row ${data.moves[columns.get("move").values[i]]}`);
      made.id = `fact-${place}`;
      made.setAttribute("role", "row");
      made.setAttribute("aria-rowindex", String(place + 1));
      made.setAttribute("aria-selected", String(place === at));
      made.style.top = `${place * ROW}px`;
      const fact = make("span", data.question[i], "fact");
      fact.append(make("small", answer(i)));
      made.append(fact, ...listed.map((column) => make("span", shown(column, i), classes(column.key))));
      for (const cell of made.children) cell.setAttribute("role", "gridcell");
      made.addEventListener("click", () => open(place));
      return made;
    }

    function open(place) {
      if (!order.length) return;
      at = Math.min(Math.max(place, 0), order.length - 1);
      const list = $("facts-list"), i = order[at];
      if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
      if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
      show();
      list.setAttribute("aria-activedescendant", `fact-${at}`);
      const table = make("table"), head = table.createTHead().insertRow();
      for (const name of data.heads) head.append(make("th", name));
      const body = table.createTBody(), compared = chosen();
      const others = data.rows.map((_, place) => place).filter((place) => !data.compared || data.rows[place].answers[0].texts);
      for (const place of new Set([...compared, ...others])) {
        const { name, answers } = data.rows[place], line = body.insertRow();
        if (compared.includes(place)) line.className = "chosen";
        line.append(make("td", name));
        for (const one of answers) line.append(answered(one, i));
      }
      const said = data.said.replace(/\{(\w+)\}/g, (_, name) => (name === "answer" ? answer(i) : shown(columns.get(name), i)));
      $("facts-one").replaceChildren(make("h3", data.question[i]), make("p", said), table);
    }

    function answered(one, i) {
      const hit = one && one.right[i] === "1" ? "hit" : "miss";
      if (one && !one.texts) return make("td", hit === "hit" ? "right" : "wrong", `answer ${hit}`);
      const text = one ? data.texts[one.texts[i]] : undefined;
      return make("td", text === undefined ? "\u2013" : text || "(nothing)", text === undefined ? "" : `answer ${hit}`);
    }

    function csv() {
      // A cell that begins like a formula would be one in a spreadsheet.
      const cell = (text) => `"${String(text).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
      const plain = (column, i) => {
        const it = value(column, i);
        return column.texts ? it : it < 0 ? "" : column.names ? column.names[it] : it / 10 ** column.digits;
      };
      const texts = data.rows.flatMap((row) => row.answers.map((one, k) => [`${row.name}, ${data.heads[k + 1]}`, one]))
        .filter(([, one]) => !data.compared || one.texts);
      const rights = data.compared ? data.rows.map((row) => [`${row.name}, right`, row.answers[0].right]) : [];
      const head = ["question", "answer", ...data.columns.map((column) => column.key), ...texts.map(([name]) => name), ...rights.map(([name]) => name)];
      const lines = order.map((i) => [data.question[i], answer(i), ...data.columns.map((column) => plain(column, i)),
        ...texts.map(([, one]) => one ? data.texts[one.texts[i]] ?? "" : ""), ...rights.map(([, right]) => right[i])]);
      const text = [head, ...lines].map((line) => line.map(cell).join(",")).join("\r\n");
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = "facts.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    build();
    $("facts-search").addEventListener("input", (event) => { state.q = event.target.value; choose(true); });
    $("facts-csv").addEventListener("click", csv);
    $("facts-list").addEventListener("scroll", show, { passive: true });
    $("facts-list").addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor($("facts-list").clientHeight / ROW) - 1);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: order.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      open(to);
    });
    addEventListener("resize", show);
    addEventListener("hashchange", () => { if (read()) choose(false); });
    const named = read();
    $("browser").hidden = false;
    choose(false);
    if (named) $("browser").scrollIntoView();
    $("browser").dataset.ready = "yes";
  }

  // After the first paint: what can be read without a script comes first.
  requestAnimationFrame(() => setTimeout(() => unpacked().then(begin).catch((error) => {
    $("browser").hidden = false;
    $("facts-count").textContent = `The list cannot be shown here (${error.message}).`;
  })));
})();
