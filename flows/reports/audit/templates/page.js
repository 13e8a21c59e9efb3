"use strict";
// Reads the page's own data and builds what is looked at. Data becomes text only (textContent, attributes that are
// plain text): never markup, never an address.
(() => {
  const FOLDED_ROWS = 25; // as in page.css
  const byId = (id) => document.getElementById(id);

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null)); // strings become text nodes
    return element;
  }

  const badge = (kind) => make("span", { class: `badge ${kind}` }, kind);
  const free = (text, kind = "") => make("div", { class: `free ${kind}` }, text);
  const signed = (value, digits = 4) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const small = (value) => (value === 0 ? "0" : (value < 0 ? "−" : "+") + Number(Math.abs(value).toPrecision(4)));
  const some = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);

  // What is searched, sorted and unfolded on the campaign's page stands in its address: the same when it is read again.
  function keep(name, value) {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (value) asked.set(name, value);
    else asked.delete(name);
    history.replaceState(null, "", `#${asked}`);
  }

  // Hides all but the first rows of the table in the element called `id` (page.css says how many; none when printed)
  // behind a button below it. Returns what is to be called when its rows are others.
  function fold(id) {
    const place = byId(id), rows = () => place.querySelectorAll("tbody tr").length;
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has(`all-${id}`)) return () => {};
    const button = make("button", { type: "button", class: "more" });
    const update = () => {
      button.textContent = `Show all ${rows().toLocaleString("en")} rows`;
      button.hidden = rows() <= FOLDED_ROWS;
    };
    button.addEventListener("click", () => {
      place.classList.remove("folded");
      button.remove();
      keep(`all-${id}`, "yes");
    });
    place.classList.add("folded");
    place.append(button);
    update();
    return update;
  }

  function skillTable(skills, columns) {
    const head = make("tr", {}, ...columns.map(([name]) => make("th", {}, name)));
    const rows = skills.map((skill) => make("tr", {}, ...columns.map(([, cell, kind]) => make("td", { class: kind || "" }, cell(skill)))));
    return make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  // As `skillTable`, of rows that may be others later: columns of [name, cell, kind of cell, value to sort by]. It is
  // sorted by the column named `start`, upwards where a `-` stands first; each click tells `changed` what it is sorted by.
  function sortedTable(rows, columns, start, changed) {
    let by = null, falls = true, shown = rows;
    const body = make("tbody", {}), heads = columns.map(([name]) => make("th", {}, name));
    const mark = headings(heads, (number, downwards) => {
      [by, falls] = [columns[number][3], downwards];
      changed((falls ? "" : "-") + columns[number][0]);
      show(shown);
    });
    const first = columns.findIndex(([name]) => name === start.replace(/^-/, ""));
    if (first >= 0) {
      [by, falls] = [columns[first][3], !start.startsWith("-")];
      mark(first, falls);
    }
    function show(some) {
      shown = some;
      const sorted = by === null ? some : inOrder(some, by, falls);
      body.replaceChildren(...sorted.map((row) => make("tr", {}, ...columns.map(([, cell, kind]) => make("td", { class: kind || "" }, cell(row))))));
    }
    show(rows);
    return [make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)), show];
  }

  function sortTables() {
    for (const table of document.querySelectorAll("table")) sortable(table);
  }

  // The campaign's page -----------------------------------------------------------------------------------------------

  function showEffects(effects) {
    const asked = new URLSearchParams(location.hash.slice(1));
    const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)}%`);
    const column = (name, key, cell) => [name, (row) => cell(row[key]), "number", (row) => row[key]];
    const [table, show] = sortedTable(effects, [
      ["kind", (row) => badge(row.kind), "", (row) => row.kind],
      ["skill", (row) => free(row.text), "skill-text", (row) => row.text],
      column("steps", "steps", String),
      column("made likelier", "raised", share),
      column("won then", "won_if_raised", share),
      column("won else", "won_if_not", share),
      column("mean delta, nats", "delta", (value) => signed(value, 2)),
      column("a token", "delta_per_token", (value) => signed(value, 3)),
      ...(effects.some((row) => row.placebo_delta !== null)
        ? [column("placebo's delta", "placebo_delta", (value) => (value === null ? "–" : signed(value, 2)))]
        : []),
      column("share", "share", (value) => (value === null ? "–" : `${(100 * value).toFixed(1)}%`)),
      column("born", "first", String),
      column("last used", "last", String),
    ], asked.get("sort") ?? "", (value) => keep("sort", value));
    const text = byId("effect-text"), kind = byId("effect-kind");
    kind.append(make("option", { value: "" }, "all kinds"), ...["episode", "step"].map((value) => make("option", { value }, value)));
    const filter = () => {
      const found = effects.filter((row) => (!kind.value || row.kind === kind.value) && row.text.toLowerCase().includes(text.value.toLowerCase()));
      byId("effect-count").textContent = `${found.length} of ${effects.length} skills`;
      show(found);
      refold();
    };
    for (const [name, field] of [["text", text], ["kind", kind]]) {
      if (asked.has(name)) field.value = asked.get(name);
      field.addEventListener("input", () => {
        keep(name, field.value);
        filter();
      });
    }
    byId("effects").append(table);
    const refold = fold("effects");
    filter();
  }

  async function campaignPage() {
    const { added, effects } = await unpack("campaign");
    byId("added").append(
      skillTable(added, [
        ["kind", (skill) => badge(skill.kind)],
        ["times", (skill) => String(skill.count)],
        ["text", (skill) => free(skill.text), "skill-text"],
      ]),
    );
    const asked = new URLSearchParams(location.hash.slice(1));
    document.querySelectorAll("table").forEach((table, number) => {
      const name = `sort-${table.closest("[id]")?.id ?? number}`;
      sortable(table, asked.get(name) ?? "", (value) => keep(name, value));
    });
    if (effects.length) showEffects(effects);
    for (const id of ["iterations", "findings", "added"]) if (byId(id)) fold(id);
  }

  // An iteration's page -----------------------------------------------------------------------------------------------

  async function iterationPage() {
    sortTables();
    const index = await unpack("index");
    const opened = new Map(); // promises of chunks by number of the trajectory
    const chunk = (number) => {
      if (!opened.has(number)) opened.set(number, unpack(`chunk-${number}`));
      return opened.get(number);
    };
    const searched = []; // by trajectory: the text of the trajectory itself, and of each of its steps, in lower case

    // Steps, their tokens and what they were scored under ---------------------------------------------------------------

    function tokensOf(step, scoring) {
      const points = Array.from(step.response); // code points, as the lengths count them
      const deltas = step.deltas[scoring] ?? null; // of one of the skills that the step was scored under
      let at = 0;
      return step.ids.map((id, place) => {
        const delta = deltas === null ? null : deltas[place] / index.delta_steps;
        const old = step.old[place] / index.old_steps;
        const given = step.skill_advantage; // one a token, or a factor of the deltas
        const skill = Array.isArray(given) ? given[place] : given * (delta ?? 0);
        const text = step.lengths === null ? null : points.slice(at, (at += step.lengths[place])).join("");
        return { id, text, name: index.specials[id] ?? null, delta, old, skill, total: step.outcome_advantage + step.step_advantage + skill };
      });
    }

    function tokenNote(token) {
      const delta = token.delta === null ? "no skill, no delta" : `delta ${signed(token.delta)} = ${(token.old + token.delta).toFixed(3)} with the skill − (${token.old.toFixed(3)}) without`;
      return `token ${token.id}${token.name === null ? "" : ` ${token.name}`}\n${delta}\nadvantage ${small(token.total)}, of it skill ${small(token.skill)}`;
    }

    function heat(span, token) {
      if (token.delta !== null && index.scale > 0) {
        const strength = Math.min(1, Math.abs(token.delta) / index.scale) * 0.75;
        span.style.backgroundColor = token.delta < 0 ? `rgba(224, 112, 26, ${strength})` : `rgba(29, 111, 209, ${strength})`;
      }
      return span;
    }

    function responseOf(step, tokens) {
      if (step.lengths === null) {
        const ids = tokens.map((token) => heat(make("span", { title: tokenNote(token) }, String(token.id)), token));
        return make("div", {}, free(step.response, "response"), make("p", { class: "muted" }, "The text cannot be split into its tokens; their ids:"), make("div", { class: "ids mono" }, ...ids));
      }
      const spans = tokens.map((token) => {
        const span = make("span", { title: tokenNote(token) }, token.text);
        if (token.name !== null) span.dataset.name = token.name;
        return heat(span, token);
      });
      return make("div", { class: "free response" }, ...spans);
    }

    function tokenTable(step, tokens) {
      const details = make("details", {}, make("summary", { class: "muted" }, `all ${some(tokens.length, "token")}`));
      details.addEventListener("toggle", () => {
        if (details.childElementCount > 1) return; // made already
        const names = ["place", "id", "text", "log-prob", "with skill", "delta", "outcome advantage", "skill advantage", "advantage"];
        const rows = tokens.map((token, place) => {
          const text = token.name ?? (token.text === null ? "–" : JSON.stringify(token.text));
          const under = token.delta === null ? ["–", "–"] : [(token.old + token.delta).toFixed(3), signed(token.delta)];
          const cells = [place, token.id, text, token.old.toFixed(3), ...under, small(step.outcome_advantage), small(token.skill), small(token.total)];
          return make("tr", {}, ...cells.map((cell) => make("td", {}, String(cell))));
        });
        const head = make("thead", {}, make("tr", {}, ...names.map((name) => make("th", {}, name))));
        const table = make("table", { class: "numbers mono" }, head, make("tbody", {}, ...rows));
        sortable(table);
        details.append(make("div", { class: "wide long" }, table));
      });
      return details;
    }

    function advantageLine(step, tokens) {
      const skill = mean(tokens.map((token) => token.skill));
      const parts = [`outcome ${small(step.outcome_advantage)}`, ...(step.step_advantage ? [`step ${small(step.step_advantage)}`] : []), `skill ${small(skill)} (mean of ${some(tokens.length, "token")})`];
      const total = make("b", {}, `total ${small(step.outcome_advantage + step.step_advantage + skill)}`);
      return make("span", { class: "numbers-line" }, `${parts.join("  +  ")}  =  `, total, step.trained ? null : "  · left out of the update");
    }

    // `only`: the number of the one skill to show it under, in that skill's own view; null: all, in its trajectory.
    function stepCard(number, step, only) {
      const facts = [`reward ${step.reward}`, step.is_valid ? "valid action" : "invalid action", ...(step.done ? ["done"] : []), ...(step.truncated ? ["truncated"] : [])];
      const place = only === null ? `Step ${step.step}` : `${index.trajectories[number].id} · step ${step.step}`;
      const title = make("h3", {}, make("a", { href: `#trajectory=${number}&step=${step.step}` }, place));
      const bar = make("div", { class: "bar" }, title, make("span", {}, "route ", badge(step.route)), make("span", { class: "muted" }, step.reason), make("span", { class: "right" }, facts.join(" · ")));
      const fields = make("dl", { class: "fields" });
      const field = (name, ...values) => fields.append(make("dt", {}, name), make("dd", {}, ...values));
      field("observation", free(step.observation, "long"));
      field("action", free(step.action, "mono"));
      const scorings = step.skills.map((_, scoring) => scoring).filter((scoring) => only === null || step.skills[scoring] === only);
      for (const scoring of scorings.length ? scorings : [null]) {
        const tokens = tokensOf(step, scoring);
        const deltas = tokens.map((token) => token.delta ?? 0);
        if (scoring !== null && only === null) {
          const skill = index.skills[step.skills[scoring]];
          field(`${skill.kind} skill`, make("a", { class: `skill-link ${skill.kind}`, href: `#skill=${step.skills[scoring]}` }, free(skill.text)));
        }
        field("response", make("div", { class: "long" }, responseOf(step, tokens)));
        field("delta", make("span", { class: "numbers-line" }, scoring === null ? "none: scored without a skill" : `sum ${signed(mean(deltas) * deltas.length)}, mean ${signed(mean(deltas))} nats`));
        field("advantage", advantageLine(step, tokens), tokenTable(step, tokens));
      }
      return make("article", { class: "step-card", "data-step": step.step }, bar, fields);
    }

    // Views -------------------------------------------------------------------------------------------------------------

    function trajectoryHead(trajectory) {
      const routes = Object.entries(trajectory.routes).map(([route, count]) => make("span", {}, badge(route), ` ${count} `));
      return make("div", {},
        make("h2", {}, `${trajectory.id} `, badge(trajectory.outcome)),
        free(trajectory.text),
        make("p", { class: "muted" }, `task ${trajectory.task} (${trajectory.type}) · group ${trajectory.group} · return ${trajectory.return}${trajectory.score === null ? "" : ` · score ${trajectory.score}`} · ${some(trajectory.steps, "step")} · ${some(trajectory.tokens, "token")} · routes `, ...routes),
        trajectory.error === null ? null : free(trajectory.error, "alarm"));
    }

    async function showTrajectory(number, target) {
      const { steps } = await chunk(number);
      const skills = index.skills.flatMap((skill, place) => (skill.trajectory === number ? [[skill, place]] : []));
      const learnt = skills.map(([skill, place]) => make("li", {}, badge(skill.kind), " ", skill.step === null ? "" : `step ${skill.step}: `, make("a", { href: `#skill=${place}` }, skill.text || "no skill: the analysis failed")));
      const failed = skills.filter(([skill]) => !skill.text).length; // analyses
      const matching = matchingSteps(number, steps);
      const cards = steps.map((step, place) => {
        const card = stepCard(number, step, null);
        card.classList.toggle("dim", !matching[place]);
        card.classList.toggle("target", step.step === target);
        return card;
      });
      return () => {
        byId("trajectory").replaceChildren(trajectoryHead(index.trajectories[number]), make("details", { class: "note", open: "" }, make("summary", {}, `Learnt from this trajectory: ${some(learnt.length - failed, "skill")}${failed ? `, ${failed} failed` : ""}`), make("ul", {}, ...learnt)), ...cards);
        const goal = cards.find((card) => card.classList.contains("target"));
        if (goal) goal.scrollIntoView({ block: "start" });
      };
    }

    async function showSkill(number) {
      const skill = index.skills[number];
      const [origin, ...others] = await Promise.all([skill.trajectory, ...skill.scored.map(([trajectory]) => trajectory)].map(chunk));
      const cards = skill.scored.map(([trajectory, at], place) => stepCard(trajectory, others[place].steps.find((step) => step.step === at), number));
      const tokens = skill.scored.reduce((sum, [, at], place) => sum + others[place].steps.find((step) => step.step === at).ids.length, 0);
      const facts = make("dl", { class: "fields" });
      for (const [name, value] of Object.entries(skill.analysis)) facts.append(make("dt", {}, name), make("dd", { class: "free" }, String(value)));
      if (skill.reply !== null) facts.append(make("dt", {}, "raw reply"), make("dd", {}, make("pre", {}, origin.replies[skill.reply])));
      return () => byId("view-skill").replaceChildren(
        make("p", {}, make("a", { href: cameFrom ?? `#trajectory=${skill.trajectory}`, id: "back" }, "← back"), " · ", make("a", { href: "#skills" }, "all skills")),
        make("p", {}, badge(skill.kind), " ", skill.step === null ? "" : `for step ${skill.step} `, "learnt from ", make("a", { href: `#trajectory=${skill.trajectory}` }, index.trajectories[skill.trajectory].id), skill.new ? make("span", { class: "muted" }, " · its text is new in this iteration") : ""),
        free(skill.text || "no skill: the analysis failed", "skill-title"),
        make("details", { class: "note" }, make("summary", {}, "How it was made"), facts),
        make("h2", {}, `Scored under it: ${some(cards.length, "step")}, ${some(tokens, "token")}`),
        ...cards);
    }

    function showSkills() {
      const wanted = byId("skill-text").value.toLowerCase();
      const kind = byId("skill-kind").value;
      const places = index.skills.map((_, place) => place).filter((place) => {
        const skill = index.skills[place];
        return (!kind || skill.kind === kind) && (!byId("skill-new").checked || skill.new) && `${skill.id}\n${skill.text}\n${skill.analysis.error ?? ""}`.toLowerCase().includes(wanted);
      });
      byId("skill-count").textContent = `${places.length} of ${index.skills.length} skills`;
      showPlaces(places);
    }

    const skillOf = (place) => index.skills[place], originOf = (place) => index.trajectories[skillOf(place).trajectory];
    const [skillsTable, showPlaces] = sortedTable([], [
      ["kind", (place) => badge(skillOf(place).kind), "", (place) => skillOf(place).kind],
      ["step", (place) => String(skillOf(place).step ?? ""), "number", (place) => skillOf(place).step],
      ["outcome", (place) => badge(originOf(place).outcome), "", (place) => originOf(place).outcome],
      ["steps scored", (place) => String(skillOf(place).scored.length), "number", (place) => skillOf(place).scored.length],
      ["mean delta, nats", (place) => (skillOf(place).delta === null ? "–" : signed(skillOf(place).delta, 2)), "number", (place) => skillOf(place).delta],
      ["text", (place) => make("a", { href: `#skill=${place}` }, free(skillOf(place).text || `failed: ${skillOf(place).analysis.error}`)), "skill-text", (place) => skillOf(place).text],
      ["trajectory", (place) => make("a", { href: `#trajectory=${skillOf(place).trajectory}` }, originOf(place).id), "id", (place) => originOf(place).id],
    ], "", () => {});
    byId("skill-list").append(skillsTable);

    // Filters -----------------------------------------------------------------------------------------------------------

    const wantedText = () => byId("text").value.toLowerCase();

    async function readAllText() {
      for (let number = searched.length; number < index.trajectories.length; number++) {
        const trajectory = index.trajectories[number];
        const { steps } = await (opened.get(number) ?? unpack(`chunk-${number}`));
        searched[number] = {
          own: [trajectory.id, trajectory.task, trajectory.type, trajectory.text, trajectory.error ?? ""].join("\n").toLowerCase(),
          steps: steps.map((step) => [step.observation, step.action, step.response, step.reason, ...step.skills.map((skill) => index.skills[skill].text)].join("\n").toLowerCase()),
        };
      }
    }

    function matchingSteps(number, steps) {
      const text = wantedText(), route = byId("route").value;
      const inOwn = !text || !searched[number] || searched[number].own.includes(text);
      return steps.map((step, place) => (!route || step.route === route) && (inOwn || searched[number].steps[place].includes(text)));
    }

    function matches(number) {
      const trajectory = index.trajectories[number], task = byId("task").value, outcome = byId("outcome").value, route = byId("route").value, text = wantedText();
      if (task && task !== `type:${trajectory.type}` && task !== `task:${trajectory.task}`) return false;
      if ((outcome && trajectory.outcome !== outcome) || (route && !trajectory.routes[route])) return false;
      return !text || searched[number].own.includes(text) || searched[number].steps.some((step) => step.includes(text));
    }

    let filtering = 0;
    async function showList() {
      const turn = ++filtering;
      if (wantedText() && searched.length < index.trajectories.length) {
        byId("count").textContent = "reading all trajectories …";
        await readAllText();
        if (turn !== filtering) return;
      }
      const found = index.trajectories.map((_, number) => number).filter(matches);
      byId("count").textContent = `${found.length} of ${index.trajectories.length} trajectories`;
      byId("list").replaceChildren(...found.map((number) => {
        const trajectory = index.trajectories[number];
        const routes = Object.entries(trajectory.routes).map(([route, count]) => `${route} ${count}`).join(", ");
        return make("li", {}, make("a", { href: `#trajectory=${number}`, "data-number": number },
          make("span", { class: "top" }, trajectory.task, badge(trajectory.outcome)),
          make("small", {}, trajectory.text),
          make("small", {}, `${trajectory.id} · ${some(trajectory.steps, "step")} · ${routes}`)));
      }));
      markHere();
    }

    function choices(id, everything, groups) {
      byId(id).append(make("option", { value: "" }, everything), ...groups.map(([label, options]) => make("optgroup", { label }, ...options.map(([value, text]) => make("option", { value }, text)))));
    }

    const distinct = (name) => [...new Set(index.trajectories.map((trajectory) => trajectory[name]))].sort();

    // The address after # says what is looked at ------------------------------------------------------------------------

    let here = "", cameFrom = null, turns = 0;

    function markHere() {
      const number = new URLSearchParams(here).get("trajectory");
      const list = byId("list");
      for (const link of list.querySelectorAll("a")) {
        const isHere = link.dataset.number === number, top = link.offsetTop - list.offsetTop;
        link.classList.toggle("here", isHere);
        if (isHere && (top < list.scrollTop || top + link.offsetHeight > list.scrollTop + list.clientHeight)) list.scrollTop = top - 60;
      }
    }

    async function go() {
      const before = here, turn = ++turns;
      here = location.hash.slice(1) || "trajectories";
      const asked = new URLSearchParams(here);
      const trajectory = Number(asked.get("trajectory")), skill = Number(asked.get("skill"));
      let view = "trajectories", show = () => {};
      if (asked.has("skill") && index.skills[skill]) {
        if (before.startsWith("trajectory") || before === "skills") cameFrom = `#${before}`;
        [view, show] = ["skill", await showSkill(skill)];
      } else if (here === "skills" || here === "record") {
        view = here;
        if (view === "skills") show = showSkills;
      } else if (index.trajectories[trajectory] && (asked.has("trajectory") || !byId("trajectory").childElementCount)) {
        show = await showTrajectory(trajectory, asked.has("step") ? Number(asked.get("step")) : null);
      }
      if (turn !== turns) return;
      for (const name of ["trajectories", "skills", "skill", "record"]) byId(`view-${name}`).hidden = name !== view;
      for (const link of document.querySelectorAll(".tabs a")) link.classList.toggle("here", link.hash === `#${view === "skill" ? "skills" : view}`);
      if (view === "skill") scrollTo(0, 0);
      show();
      markHere();
      document.body.dataset.shown = here;
    }

    const trouble = [];
    if (index.no_tokenizer !== null) trouble.push(`No tokenizer at hand: ${index.no_tokenizer}. Deltas are shown over token ids.`);
    byId("trouble").textContent = trouble.join(" ");
    byId("trouble").hidden = !trouble.length;
    choices("task", "all tasks", [["types", distinct("type").map((type) => [`type:${type}`, type])], ["tasks", distinct("task").map((task) => [`task:${task}`, task])]]);
    choices("outcome", "all outcomes", [["outcomes", distinct("outcome").map((outcome) => [outcome, outcome])]]);
    choices("route", "all routes", [["routes", ["step", "episode", "none"].map((route) => [route, route])]]);
    choices("skill-kind", "all kinds", [["kinds", ["episode", "step", "failed"].map((kind) => [kind, kind])]]);
    const refilter = async () => {
      await showList();
      if (here.startsWith("trajectory=")) await go();
    };
    for (const id of ["text", "task", "outcome", "route"]) byId(id).addEventListener("input", refilter);
    for (const id of ["skill-text", "skill-kind", "skill-new"]) byId(id).addEventListener("input", showSkills);
    addEventListener("hashchange", go);
    await showList();
    if (!location.hash && index.trajectories.length) history.replaceState(null, "", "#trajectory=0");
    await go();
  }

  // Not a `<meta http-equiv="refresh">`: that forgets where the reader was, and what stands behind the address's `#`.
  function reloadFollowed() {
    const followed = byId("followed");
    if (!followed) return;
    setInterval(() => {
      if (!document.activeElement?.matches("input, select")) location.reload();
    }, 1000 * followed.dataset.seconds);
  }

  async function open() {
    reloadFollowed();
    const isPacked = byId("index") || byId("campaign");
    if (isPacked && typeof DecompressionStream === "undefined") throw new Error("this page needs a browser of 2023 or later");
    await (byId("index") ? iterationPage() : byId("campaign") ? campaignPage() : sortTables());
    document.body.dataset.ready = "yes";
  }

  open().catch((error) => {
    document.body.prepend(make("p", { class: "alarm" }, `This page cannot be shown: ${error.message}`));
  });
})();
