// The list of all facts: search, filter, sort, one fact's answers, CSV of what is shown. Every text of a model or of a
// user becomes a text node and nothing else. Only the rows in sight exist (a list of 50,000 is as quick as one of 50).
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
    const keys = {
      fact: (i) => data.question[i], relation: (i) => data.relations[data.relation[i]],
      move: (i) => data.move[i], before: (i) => data.before[i], after: (i) => data.after[i],
      change: (i) => data.after[i] - data.before[i],
    };
    const state = { q: "", move: "", relation: "", sort: "change", way: "up" };
    let order = [], at = -1;

    for (const [i, name] of data.moves.entries()) $("facts-move").append(new Option(name, String(i)));
    for (const [i, name] of data.relations.entries()) $("facts-relation").append(new Option(name, String(i)));

    function read() {
      for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (Object.hasOwn(state, name)) state[name] = value;
      if (!Object.hasOwn(keys, state.sort)) state.sort = "change";
      const move = data.moves.indexOf(state.move);
      $("facts-search").value = state.q;
      $("facts-move").value = move < 0 ? "" : String(move);
      $("facts-relation").value = String(Math.max(-1, data.relations.indexOf(state.relation)));
      if (!$("facts-relation").value) $("facts-relation").value = "";
    }

    function write() {
      const told = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
      try { history.replaceState(null, "", `#${told}`); } catch { /* a page that may not: the view stays unnamed */ }
      $("facts-link").href = `#${told}`;
    }

    function choose() {
      const wanted = state.q.toLowerCase(), move = data.moves.indexOf(state.move);
      const relation = data.relations.indexOf(state.relation);
      order = [];
      for (let i = 0; i < count; i++) {
        if ((move < 0 || data.move[i] === move) && (relation < 0 || data.relation[i] === relation) &&
            (!wanted || searched[i].includes(wanted))) order.push(i);
      }
      const key = keys[state.sort], sign = state.way === "down" ? -1 : 1;
      order.sort((a, b) => {
        const x = key(a), y = key(b);
        return sign * (x < y ? -1 : x > y ? 1 : 0) || a - b;
      });
      at = -1;
      $("facts-list").scrollTop = 0;
      $("facts-count").textContent = `${order.length.toLocaleString("en")} of ${count.toLocaleString("en")} facts`;
      $("facts-list").setAttribute("aria-rowcount", String(order.length));
      for (const button of document.querySelectorAll("#facts-head button")) {
        const mine = button.dataset.key === state.sort;
        button.parentElement.setAttribute("aria-sort", !mine ? "none" : state.way === "down" ? "descending" : "ascending");
      }
      write();
      show();
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
      const i = order[place], made = make("div", undefined, `fact-row ${data.moves[data.move[i]]}`);
      made.id = `fact-${place}`;
      made.setAttribute("role", "row");
      made.setAttribute("aria-rowindex", String(place + 1));
      made.setAttribute("aria-selected", String(place === at));
      made.style.top = `${place * ROW}px`;
      const fact = make("span", data.question[i], "fact");
      fact.append(make("small", answer(i)));
      made.append(fact, make("span", data.relations[data.relation[i]], "relation"), make("span", data.moves[data.move[i]], "move"),
        make("span", rate(data.before[i])), make("span", rate(data.after[i])));
      for (const cell of made.children) cell.setAttribute("role", "gridcell");
      made.addEventListener("click", () => open(place));
      return made;
    }

    const rate = (thousandths) => (thousandths / 1000).toFixed(2);

    function open(place) {
      if (!order.length) return;
      at = Math.min(Math.max(place, 0), order.length - 1);
      const list = $("facts-list"), i = order[at];
      if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
      if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
      show();
      list.setAttribute("aria-activedescendant", `fact-${at}`);
      const told = $("facts-one");
      const table = make("table"), head = table.createTHead().insertRow();
      for (const name of ["form", "base", "tuned"]) head.append(make("th", name));
      const body = table.createTBody();
      for (const form of data.forms) {
        const line = body.insertRow();
        line.append(make("td", form.name));
        for (const who of ["base", "tuned"]) {
          const text = form[who] ? data.texts[form[who][i]] : undefined;
          const hit = form[who] && form[`${who}_right`][i] === "1" ? "hit" : "miss";
          line.append(make("td", text === undefined ? "\u2013" : text || "(nothing)", text === undefined ? "" : `answer ${hit}`));
        }
      }
      told.replaceChildren(
        make("h3", data.question[i]),
        make("p", `${answer(i)}. R ${rate(data.before[i])} before, ${rate(data.after[i])} after: ${data.moves[data.move[i]]}.`), table);
    }

    function csv() {
      // A cell that begins like a formula would be one in a spreadsheet.
      const cell = (value) => `"${String(value).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
      const head = ["question", "answer", "relation", "move", "before", "after",
        ...data.forms.flatMap((form) => [`${form.name}, base`, `${form.name}, tuned`])];
      const lines = order.map((i) => [data.question[i], answer(i), data.relations[data.relation[i]], data.moves[data.move[i]],
        ...[data.before[i], data.after[i]].map((value) => value / 1000),
        ...data.forms.flatMap((form) => ["base", "tuned"].map((who) => form[who] ? data.texts[form[who][i]] ?? "" : ""))]);
      const text = [head, ...lines].map((line) => line.map(cell).join(",")).join("\r\n");
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = "facts.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    $("facts-search").addEventListener("input", (event) => { state.q = event.target.value; choose(); });
    $("facts-move").addEventListener("change", (event) => { state.move = data.moves[event.target.value] ?? ""; choose(); });
    $("facts-relation").addEventListener("change", (event) => {
      state.relation = data.relations[event.target.value] ?? "";
      choose();
    });
    for (const button of document.querySelectorAll("#facts-head button")) {
      button.addEventListener("click", () => {
        state.way = state.sort === button.dataset.key && state.way === "up" ? "down" : "up";
        state.sort = button.dataset.key;
        choose();
      });
    }
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
    addEventListener("hashchange", () => { read(); choose(); });
    read();
    $("browser").hidden = false;
    choose();
    $("browser").dataset.ready = "yes";
  }

  // After the first paint: what can be read without a script comes first.
  requestAnimationFrame(() => setTimeout(() => unpacked().then(begin).catch((error) => {
    $("browser").hidden = false;
    $("facts-count").textContent = `The list cannot be shown here (${error.message}).`;
  })));
})();
