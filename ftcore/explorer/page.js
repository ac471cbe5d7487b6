/* What the page does. It reads top to bottom:

     elements, arrays       the two helpers that everything uses
     what was recorded      questions to the recording: a head's weights, what comes next, ...
     state                  what the reader looks at, kept in the address
     text, network          the two views that are always there
     panels                 attention, next token, logit lens, beams, changes
     server                 what a page with a model behind it can ask
     start

   Tokens may hold anything. They reach the page as text nodes and attributes only, never as markup. */

// ------------------------------------------------------------------------------------------------- elements

const byId = (id) => document.getElementById(id);

/** An element. Properties that are functions listen to the event of that name; strings among the children are text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else made.setAttribute(name, value === true ? "" : value);
  }
  fill(made, ...children);
  return made;
}

/** Append what is there: null stands for nothing. */
const fill = (root, ...children) => root.append(...children.filter((child) => child !== null));

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const button = (properties, ...children) => element("button", { type: "button", ...properties }, ...children);

/** Exchange what is in an element; the focus stays on what has the same data-key. */
function refill(root, ...children) {
  const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  root.replaceChildren(...children.filter((child) => child !== null));
  if (key) root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** Make the buttons in an element one stop of the Tab key; arrows move among them. */
function roving(root) {
  const items = () => [...root.querySelectorAll("button:not(:disabled)")];
  root.addEventListener("focusin", (event) => {
    for (const item of root.querySelectorAll('button[tabindex="0"]')) item.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  root.addEventListener("keydown", (event) => {
    const all = items();
    const here = all.indexOf(event.target);
    if (here < 0) return;
    const there = {
      ArrowLeft: () => all[here - 1],
      ArrowRight: () => all[here + 1],
      ArrowUp: () => nearest(event.target, all, -1),
      ArrowDown: () => nearest(event.target, all, 1),
      Home: () => all[0],
      End: () => all.at(-1),
    }[event.key]?.();
    if (!there) return;
    event.preventDefault();
    there.focus();
  });
}

/** The button above (-1) or below (1), in what the eye sees. */
function nearest(from, all, direction) {
  const middle = (item) => {
    const box = item.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x, y] = middle(from);
  let best = null;
  let least = Infinity;
  for (const item of all) {
    const [itsX, itsY] = middle(item);
    const away = (itsY - y) * direction;
    const distance = away * 3 + Math.abs(itsX - x);
    if (away > 6 && distance < least) [best, least] = [item, distance];
  }
  return best;
}

/** After buttons were made anew: the pressed or current one, or else the first, is where Tab leads to. */
function tabStop(root) {
  const all = [...root.querySelectorAll("button")];
  const stop = all.find((item) => item.matches('[aria-pressed="true"], [aria-current="true"]')) ?? all[0];
  for (const item of all) {
    const index = item === stop || item === document.activeElement ? 0 : -1;
    if (item.tabIndex !== index) item.tabIndex = index; // writing costs more than reading
  }
}

/** Two digits that count, however small. */
const number = (value) => (Math.abs(value) >= 1 ? value.toFixed(2) : String(Number(value.toPrecision(2))));
const percent = (value) => {
  const hundredths = 100 * value;
  if (hundredths > 0 && hundredths < 0.001) return "< 0.001 %";
  return `${hundredths >= 9.95 ? hundredths.toFixed(0) : Number(hundredths.toPrecision(2))} %`;
};

// --------------------------------------------------------------------------------------------------- arrays

const KINDS = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };

/** Unpack an array of packing.py in place: `values` beside its `shape`. */
async function unpack(array) {
  if (array.values) return array;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(array.data) : fromBase64(array.data);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  array.values = new KINDS[array.dtype](await new Response(stream).arrayBuffer());
  delete array.data;
  return array;
}

function fromBase64(data) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return bytes;
}

/** Unpack all arrays in something that was recorded. Attention waits until somebody looks at it. */
async function unpackAll(said) {
  if (said === null || typeof said !== "object") return;
  if (said.dtype) {
    await unpack(said);
    return;
  }
  await Promise.all(Object.entries(said).map(([key, value]) => (key === "attention" ? null : unpackAll(value))));
}

/** One row of an array along its last dimension, without a copy. */
function rowOf(array, ...places) {
  const width = array.shape.at(-1);
  let index = 0;
  places.forEach((place, dimension) => (index = index * array.shape[dimension] + place));
  return array.values.subarray(index * width, (index + 1) * width);
}

// ---------------------------------------------------------------------------------------- what was recorded

const content = JSON.parse(byId("content").textContent);
byId("content").remove(); // the text is not needed twice
const model = content.model;
const stacks = model.stacks;
const isT5 = model.family === "T5";
const live = content.live;
let recording = content.recording;
const texts = {}; // of tokens, by their ids

/** Every part of the network by the name of what it writes to the residual stream. */
const parts = {};
for (const stack of stacks) {
  stack.blocks.forEach((block, number) => {
    for (const part of block) parts[part.writes] = { ...part, stack: stack.name, block: number };
  });
}

const title = (part) => `${isT5 ? `${part.stack}, ` : ""}block ${part.block}, ${part.kind}`;
const run = () => recording.runs[state.run];
const positions = () => run().ids.length - 1; // that the decoder reads; the last token is only written
const source = () => recording.source[0];
const promptLength = () => run().prompt_length;

const readsSource = (part) => part.stack === "encoder"; // its queries
const looksAtSource = (part) => part.stack === "encoder" || part.kind === "cross-attention"; // its keys
const queries = (part) => (readsSource(part) ? source() : run().ids.slice(0, -1));
const keys = (part) => (looksAtSource(part) ? source() : run().ids.slice(0, -1));
const position = (part) => (readsSource(part) ? state.src : state.at);

/** Where a run's numbers at a position are: [run, index]. Runs leave out what the first one has as well. */
function place(at) {
  const own = run();
  return at >= own.start ? [own, at - own.start] : [recording.runs[0], at];
}

/** How large something is at a position: a part of "written" or "stream". */
function size(group, name, part, at) {
  if (readsSource(part)) return recording.encoder[group][name].values[at];
  const [where, index] = place(at);
  return where[group][name].values[index];
}

function headSize(part, head, at) {
  if (readsSource(part)) return rowOf(recording.encoder.heads[part.pattern], head)[at];
  const [where, index] = place(at);
  return rowOf(where.heads[part.pattern], head)[index];
}

/** Attention of a head from one query, as levels 0 to 255 of the square root; null while it is being unpacked. */
function levels(part, head, query) {
  const [where, index] = readsSource(part) ? [recording.encoder, query] : place(query);
  const array = where.attention[part.pattern];
  if (array.values) return rowOf(array, head, index);
  array.waiting ??= unpack(array).then(() => show());
  return null;
}

const weight = (level) => (level / 255) ** 2;

/** What may come next at a position: [id, probability], the likeliest first, and the written token. */
function nextTokens(at) {
  const [where, index] = place(at);
  const { ids, logits, log_sums, chosen_logit, chosen_rank } = where.next;
  const step = recording.temperatures.findIndex((one) => Math.abs(one - state.temperature) < 0.01);
  const temperature = recording.temperatures[step];
  const logit = rowOf(logits, index);
  const shown = state.k > 0 ? Math.min(state.k, logit.length) : logit.length;
  let logSum = rowOf(log_sums, index)[step];
  if (state.k > 0) {
    let sum = 0;
    for (let rank = 0; rank < shown; rank++) sum += Math.exp((logit[rank] - logit[0]) / temperature);
    logSum = logit[0] / temperature + Math.log(sum);
  }
  const probability = (one) => Math.exp(one / temperature - logSum);
  const tokens = Array.from(rowOf(ids, index).subarray(0, shown), (id, rank) => [id, probability(logit[rank])]);
  const rank = chosen_rank.values[index];
  const out = state.k > 0 && rank >= shown;
  const chosen = run().ids[at + 1];
  // A shared position's own next token is the first run's.
  const written = where.ids[at + 1] === chosen;
  const found = tokens.find(([id]) => id === chosen);
  return {
    tokens,
    chosen,
    probability: found ? found[1] : written && !out ? probability(chosen_logit.values[index]) : 0,
    rank: found ? tokens.indexOf(found) : written ? rank : null,
    plain: (id) => {
      const known = rowOf(ids, index).indexOf(id);
      const one = recording.temperatures.indexOf(1);
      return known < 0 ? null : Math.exp(logit[known] - rowOf(log_sums, index)[one]);
    },
  };
}

/** What the model would say after a block: [id, probability], the likeliest first. */
function lensOf(block, at) {
  const [where, index] = place(at);
  const probabilities = rowOf(where.lens.probabilities, block, index);
  return Array.from(rowOf(where.lens.ids, block, index), (id, rank) => [id, probabilities[rank]]);
}

const MOST_LETTERS = 60; // of a token; more would only be cut off by its box
const piece = (id) => texts[id] ?? `#${id}`;
const short = (text, most = MOST_LETTERS) => (text.length > most ? `${[...text.slice(0, most)].join("")}…` : text);
const marked = (id, most) => short(piece(id), most).replace(/^ /, "␣");
const quoted = (id) => `‘${marked(id, 30)}’`;

/** A token as it stands in a list: a space before it is drawn. */
const token = (id, properties = {}) =>
  element("span", { class: "token", dir: "auto", title: short(piece(id), 300), ...properties }, marked(id));

// ---------------------------------------------------------------------------------------------------- state

const TABS = { attention: "Attention", next: "Next token", lens: "Logit lens", beams: "Beams", change: "Change" };
const state = {}; // what the reader looks at; every change goes through `look`
const hover = { side: null, at: null }; // where the pointer is, in the text

function firstState() {
  const stack = stacks.at(-1);
  const kind = isT5 ? "cross-attention" : "self-attention";
  const first = recording.runs[0];
  const at = isT5 ? Math.min(1, first.ids.length - 2) : first.prompt_length - 1;
  Object.assign(state, {
    run: 0, at, src: 0, see: stack.blocks.at(-1).find((part) => part.kind === kind).writes, head: 0,
    tab: "attention", block: stack.blocks.length - 1, temperature: 1, k: 0, effect: "answer", changes: "",
    beam: "", kind: 0, from: null, combine: false,
  });
  // The head that adds most is the one to begin with.
  const sizes = Array.from({ length: model.heads }, (_, head) => headSize(parts[state.see], head, at));
  state.head = sizes.indexOf(Math.max(...sizes));
}

/** Look at something else: every view is drawn anew, and the address follows. */
function look(changes) {
  Object.assign(state, changes);
  setRight();
  show();
  clearTimeout(look.writing);
  look.writing = setTimeout(writeAddress, 150); // browsers refuse many changes of the address in a row
}

/** Whatever came out of the address or of a slider: make it something that exists. */
function setRight() {
  const within = (value, most) => Math.max(0, Math.min(Math.round(Number(value)) || 0, most));
  state.run = within(state.run, recording.runs.length - 1);
  state.at = within(state.at, positions() - 1);
  state.src = within(state.src, source().length - 1);
  if (!Object.hasOwn(parts, state.see)) state.see = Object.keys(parts)[0];
  state.head = Math.max(-1, Math.min(Math.round(Number(state.head)) || 0, model.heads - 1));
  state.block = within(state.block, stacks.at(-1).blocks.length - 1);
  if (!Object.hasOwn(TABS, state.tab)) state.tab = "attention";
  const nearby = recording.temperatures.map((one) => Math.abs(one - Number(state.temperature)));
  state.temperature = recording.temperatures[nearby.indexOf(Math.min(...nearby))] ?? 1;
  state.k = within(state.k, recording.runs[0].next.ids.shape[1]);
  if (!["answer", "token"].includes(state.effect)) state.effect = "answer";
  state.kind = within(state.kind, kindsOfPatch().length - 1);
  if (state.from !== null) state.from = within(state.from, 1e6);
}

function writeAddress() {
  const { run, at, src, see, head, tab, block, temperature, k, effect, changes, beam, kind, from } = state;
  const all = { run, at, src, see, head, tab, block, temperature, k, effect, changes, beam, kind };
  const address = new URLSearchParams(Object.entries(all).filter(([, value]) => value !== ""));
  if (from !== null) address.set("from", from);
  if (chosenTheme) address.set("theme", chosenTheme);
  if (live) {
    address.set("text", recording.text);
    if (content.other) address.set("other", content.other.text);
  }
  history.replaceState(null, "", `#${address}`);
}

/** Take over what the address says. In a live page it may name other texts, which then have to be recorded. */
async function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  if (live && address.has("text")) {
    const other = address.get("other") ?? content.other?.text ?? "";
    if (address.get("text") !== recording.text || other !== (content.other?.text ?? "")) {
      await record(address.get("text"), other, recording.search);
    }
  }
  for (const name of Object.keys(state)) if (address.has(name)) state[name] = address.get(name);
  if (["light", "dark"].includes(address.get("theme"))) chosenTheme = address.get("theme");
  setTheme();
  setRight();
  show();
}

let chosenTheme = null; // by the reader; else the system's
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme() {
  const theme = chosenTheme ?? (systemIsDark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colours`);
  const style = getComputedStyle(document.documentElement);
  for (const name of Object.keys(inks)) inks[name] = style.getPropertyValue(`--${name}`).trim();
  maps.clear();
}

/** The theme's colours for canvases. Read once: asking for them makes the browser lay the page out. */
const inks = { text: "", soft: "", sunk: "", self: "", cross: "" };

/** Draw everything in the next frame, however often it was asked for until then. */
function show() {
  show.waiting ??= requestAnimationFrame(() => {
    show.waiting = null;
    showText();
    showNetwork();
    showPanel();
  });
}

// ----------------------------------------------------------------------------------------------------- text

const shownTokens = { source: [], target: [] }; // the buttons, by position

function buildText() {
  refill(
    byId("runs"),
    byId("runs").querySelector("legend"),
    ...recording.runs.map((one, number) =>
      element(
        "label",
        {},
        element("input", { type: "radio", name: "run", value: number, change: () => look({ run: number, at: kept(number) }) }),
        ` ${one.name}`,
      ),
    ),
  );
  buildTokens();
}

/** The position to go on with in another run: the same one, if it has that many. */
const kept = (number) => Math.min(state.at, recording.runs[number].ids.length - 2);

function buildTokens() {
  const lines = [];
  if (isT5) lines.push(line("source", "Encoder reads", source()));
  lines.push(line("target", isT5 ? "Decoder reads and writes" : "Reads and writes", run().ids));
  byId("tokens").replaceChildren(...lines);
  buildTokens.of = `${state.run}`;
}

function line(side, name, ids) {
  const root = element("div", { class: "stream-of-tokens", role: "group", "aria-label": name }, element("b", {}, name));
  shownTokens[side] = ids.map((id, at) => {
    const text = piece(id);
    const last = side === "target" && at === ids.length - 1;
    const made = button(
      {
        dir: "auto",
        title: `${at}: ${short(text, 300)}`,
        "aria-label": `${at}: ${short(text, 80)}${last ? ", written last" : ""}`,
        "data-at": at,
        disabled: last, // nothing was read there
      },
      short(text).trimStart() || "␣",
    );
    const written = side === "target" && at >= promptLength();
    made.base = `token${text.startsWith(" ") ? " spaced" : ""}${written ? " written" : ""}`;
    root.append(made);
    if (text.endsWith("⏎")) root.append(element("br"));
    return made;
  });
  const find = (event) => event.target.closest?.("button[data-at]");
  root.addEventListener("click", (event) => {
    const made = find(event);
    if (!made) return;
    stop();
    look(side === "source" ? { src: Number(made.dataset.at) } : { at: Number(made.dataset.at) });
  });
  const point = (event) => {
    const made = find(event);
    setHover(made ? side : null, made ? Number(made.dataset.at) : null);
  };
  root.addEventListener("pointerover", point);
  root.addEventListener("pointerleave", () => setHover(null, null));
  root.addEventListener("focusin", point);
  root.addEventListener("focusout", () => setHover(null, null));
  roving(root);
  return root;
}

function setHover(side, at) {
  if (hover.side === side && hover.at === at) return;
  Object.assign(hover, { side, at });
  setHover.waiting ??= requestAnimationFrame(() => {
    setHover.waiting = null;
    showText(); // the network stays with the current position
    if (state.tab === "attention") panels.attention.draw();
  });
}

/** The query whose attention the tokens show: the one under the pointer, else the current position. */
function shownQuery(part) {
  const side = readsSource(part) ? "source" : "target";
  const most = queries(part).length - 1;
  return hover.side === side ? Math.min(hover.at, most) : position(part);
}

function showText() {
  if (buildTokens.of !== `${state.run}`) buildTokens();
  const part = parts[state.see];
  const strengths = strengthsOfTokens(part);
  for (const side of ["source", "target"]) {
    const current = side === "source" ? state.src : state.at;
    const shown = strengths.side === side ? strengths : null;
    const hue = shown ? ` kind-${part.kind}` : "";
    shownTokens[side].forEach((made, at) => {
      const level = shown && at < shown.weights.length ? (shown.weights[at] / 255).toFixed(3) : "0";
      if (made.level !== level) made.style.setProperty("--weight", (made.level = level));
      const later = side === "target" && at > state.at;
      const kind = `${made.base}${hue}${later ? " later" : ""}`;
      if (made.kind !== kind) made.className = made.kind = kind;
      if (made.current !== (at === current)) made.setAttribute("aria-current", (made.current = at === current));
    });
    const root = shownTokens[side][0]?.parentElement;
    if (!root) continue;
    if (!root.contains(document.activeElement)) tabStop(root);
    if (root.current !== current) bringIntoView(root, shownTokens[side][(root.current = current)]);
  }
  byId("reading").textContent = strengths.reading;
  for (const input of byId("runs").querySelectorAll("input")) input.checked = Number(input.value) === state.run;
  const slider = byId("position");
  slider.max = positions() - 1;
  slider.value = state.at;
  const written = quoted(run().ids[state.at + 1]);
  const prompted = state.at + 1 < promptLength();
  slider.setAttribute("aria-valuetext", `${state.at}, reads ${quoted(run().ids[state.at])}`);
  byId("position-text").textContent =
    `${state.at} of ${positions() - 1}: reads ${quoted(run().ids[state.at])}, ${prompted ? "next is" : "writes"} ${written}`;
  byId("back").disabled = state.at === 0;
  byId("forth").disabled = state.at === positions() - 1;
}

/** Scroll a box, and not the page, so that something in it can be seen. */
function bringIntoView(box, item) {
  const [around, own] = [box.getBoundingClientRect(), item.getBoundingClientRect()];
  if (own.top < around.top) box.scrollTop += own.top - around.top;
  if (own.bottom > around.bottom) box.scrollTop += own.bottom - around.bottom;
}

/** How strongly each token is coloured, on which side, and the same in words. */
function strengthsOfTokens(part) {
  if (!part.pattern) {
    const side = readsSource(part) ? "source" : "target";
    const sizes = queries(part).map((_, at) => size("written", part.writes, part, at));
    const most = Math.max(...sizes) || 1;
    const at = shownQuery(part);
    return {
      side,
      weights: sizes.map((one) => (255 * one) / most),
      reading: `${part.writes} adds a vector of size ${number(sizes[at])} at ${quoted(queries(part)[at])}. `
        + "Colour: how large it is at each token.",
    };
  }
  const query = shownQuery(part);
  const all = state.head < 0 ? Array.from({ length: model.heads }, (_, head) => head) : [state.head];
  const rows = all.map((head) => levels(part, head, query));
  const side = looksAtSource(part) ? "source" : "target";
  if (rows.includes(null)) return { side, weights: [], reading: "" };
  const count = looksAtSource(part) ? source().length : query + 1;
  const weights = new Float32Array(count);
  for (const row of rows) for (let key = 0; key < count; key++) weights[key] += weight(row[key]) / rows.length;
  const strongest = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 4);
  const pointed = hover.side === side && side !== (readsSource(part) ? "source" : "target") ? [hover.at] : strongest;
  const who = state.head < 0 ? "the mean of all heads" : `head ${state.head}`;
  const list = pointed.map((key) => `${quoted(keys(part)[key])} ${number(weights[key])}`).join(", ");
  return {
    side,
    weights: weights.map((one) => 255 * Math.sqrt(one)),
    reading: `${part.pattern}, ${who}: from ${quoted(queries(part)[query])} (${query}) to ${list}`,
  };
}

let playing = null;

function stop() {
  clearInterval(playing);
  playing = null;
  byId("play").textContent = "▶▶";
  byId("play").setAttribute("aria-label", "Play");
}

function play() {
  if (playing) return stop();
  const begin = state.at === positions() - 1 ? promptLength() - 1 : state.at;
  look({ at: begin });
  byId("play").textContent = "■";
  byId("play").setAttribute("aria-label", "Stop");
  playing = setInterval(() => (state.at < positions() - 1 ? look({ at: state.at + 1 }) : stop()), 700);
}

// -------------------------------------------------------------------------------------------------- network

const drawnParts = []; // what changes in the network's picture: functions of nothing
const SPINE = 18; // where the residual stream runs, from the left of its column

function buildNetwork() {
  drawnParts.length = 0;
  const columns = stacks.map((stack) => {
    const isDecoder = stack.name === "decoder";
    const rows = [];
    stack.blocks.forEach((block, number) => {
      block.forEach((part) => rows.push(buildPart(parts[part.writes])));
      rows.push(buildBetween(stack, block.at(-1).after, parts[block.at(-1).writes], number));
    });
    rows.unshift(buildBetween(stack, stack.before, parts[stack.blocks[0][0].writes], null));
    rows.push(isDecoder ? buildNext() : element("div", { class: "between" }, drawn("svg"), element("span", { class: "soft" }, "to every cross-attention ↗")));
    return element(
      "div",
      { class: "stack", "data-stack": stack.name },
      isT5 ? element("h3", {}, stack.name === "encoder" ? "Encoder" : "Decoder") : null,
      ...rows.reverse(),
    );
  });
  byId("stacks").replaceChildren(...(isT5 ? [drawn("svg", { id: "crossing", "aria-hidden": "true" })] : []), ...columns);
  document.documentElement.style.setProperty("--network-width", isT5 ? "35rem" : "25rem");
  byId("network-hint").textContent =
    "The residual stream runs upwards. Each part reads it and adds to it: the wider its curve, the more it adds at "
    + "the current token. Click a head or a part.";
  new ResizeObserver(drawCrossing).observe(byId("stacks"));
}

/** A part: the stream, the branch that leaves it and comes back, and a box with its heads. */
function buildPart(part) {
  const spine = drawn("line", { class: "spine", x1: SPINE, x2: SPINE, y1: "0", y2: "100%" });
  const leaves = drawn("path", { class: "branch", "stroke-width": 1.3 });
  const adds = drawn("path", { class: "adds" });
  const plus = drawn("circle", { class: "plus", cx: SPINE, r: 5 });
  const cross = drawn("path", { stroke: "var(--stream)", "stroke-width": 1.2 });
  const picture = drawn("svg", { "aria-hidden": "true" }, spine, leaves, adds, plus, cross);
  const name = button({ class: "name", click: () => see(part, -1), "data-key": `part ${part.writes}` }, part.kind);
  const heads = Array.from({ length: part.pattern ? model.heads : 0 }, (_, head) =>
    button({ class: "head", click: () => see(part, head), "data-key": `head ${part.writes} ${head}` }, String(head)),
  );
  const box = element("div", { class: "box" }, name, heads.length ? element("div", { class: "heads" }, ...heads) : null);
  const row = element("div", { class: `part kind-${part.kind}`, "data-part": part.writes }, picture, box);
  new ResizeObserver(([entry]) => {
    const height = entry.contentRect.height;
    const [top, bottom] = [9, height - 5];
    leaves.setAttribute("d", `M ${SPINE} ${bottom} C 34 ${bottom}, 34 ${height * 0.66}, 50 ${height * 0.66}`);
    adds.setAttribute("d", `M 50 ${height * 0.36} C 34 ${height * 0.36}, 34 ${top}, ${SPINE + 5} ${top}`);
    plus.setAttribute("cy", top);
    cross.setAttribute("d", `M ${SPINE - 3} ${top} h 6 M ${SPINE} ${top - 3} v 6`);
  }).observe(row);

  drawnParts.push(() => {
    const at = position(part);
    const [written, stream] = [size("written", part.writes, part, at), size("stream", part.after, part, at)];
    spine.setAttribute("stroke-width", streamWidth(part, part.after, at));
    adds.setAttribute("stroke-width", (1 + 8 * Math.min(1, written / (stream || 1))).toFixed(1));
    const seen = state.see === part.writes;
    box.classList.toggle("seen", seen);
    name.setAttribute("aria-pressed", seen && (state.head < 0 || !part.pattern));
    name.setAttribute(
      "aria-label",
      `${title(part)}${part.pattern ? ", all heads" : ""}: adds ${number(written)} to a stream of ${number(stream)}`,
    );
    name.title = `${part.writes}: adds a vector of size ${number(written)}; the stream behind it has ${number(stream)}`;
    const sizes = heads.map((_, head) => headSize(part, head, at));
    const most = Math.max(...sizes) || 1;
    const out = knockedOut();
    heads.forEach((made, head) => {
      made.style.setProperty("--weight", (sizes[head] / most).toFixed(2));
      made.setAttribute("aria-pressed", seen && state.head === head);
      made.classList.toggle("out", out.has(`${part.z}:${head}`));
      const says = `${title(part)}, head ${head}: adds ${number(sizes[head])}`;
      if (made.title !== says) {
        made.title = says;
        made.setAttribute("aria-label", says);
      }
    });
  });
  return row;
}

/** How wide the stream is drawn: its size, compared with the largest of its column. */
function streamWidth(part, name, at) {
  const stack = stacks.find((one) => one.name === part.stack);
  const names = [stack.before, ...stack.blocks.flat().map((one) => one.after)];
  const key = `${recording.id} ${state.run} ${part.stack} ${at}`;
  if (streamWidth.key !== key) {
    Object.assign(streamWidth, { key, most: Math.max(...names.map((one) => size("stream", one, part, at))) });
  }
  return (2.5 + 8 * (size("stream", name, part, at) / (streamWidth.most || 1))).toFixed(1);
}

/** The stream between two blocks; in the decoder with what the model would say there. */
function buildBetween(stack, name, part, number) {
  const spine = drawn("line", { class: "spine", x1: SPINE, x2: SPINE, y1: "0", y2: "100%" });
  const picture = drawn("svg", { "aria-hidden": "true" }, spine);
  const row = element("div", { class: "between" }, picture);
  if (number === null) {
    const reads = element("span", { class: "says" });
    row.append(reads);
    drawnParts.push(() => refill(reads, "reads", token(stack.name === "encoder" ? source()[state.src] : run().ids[state.at])));
  } else if (stack.name === "decoder") {
    const says = button({ class: "says", click: () => look({ tab: "lens", block: number }), "data-key": `lens ${number}` });
    row.append(says);
    drawnParts.push(() => {
      const [[id, probability]] = lensOf(number, state.at);
      says.replaceChildren(
        `after block ${number}:`,
        token(id, { style: { "--weight": probability.toFixed(2) } }),
        element("span", { class: "number" }, percent(probability)),
      );
      says.setAttribute("aria-label", `Logit lens after block ${number}: ${short(piece(id))}, ${percent(probability)}`);
    });
  } else {
    row.append(element("span", { class: "says" }, `after block ${number}`));
  }
  drawnParts.push(() => spine.setAttribute("stroke-width", streamWidth(part, name, position(part))));
  return row;
}

function buildNext() {
  const made = button({ class: "next", click: () => look({ tab: "next" }), "data-key": "next" });
  drawnParts.push(() => {
    const { tokens, chosen } = nextTokens(state.at);
    made.replaceChildren(
      element("span", { class: "soft" }, "what comes next"),
      ...tokens.slice(0, 5).map(([id, probability]) =>
        element(
          "span",
          { class: "row" },
          token(id, id === chosen ? { style: { "font-weight": "700" } } : {}),
          element("span", { class: "measure" }, element("i", { style: { "--weight": probability.toFixed(4) } })),
          element("span", { class: "number" }, percent(probability)),
        ),
      ),
    );
    made.setAttribute(
      "aria-label",
      `What comes next: ${tokens.slice(0, 5).map(([id, one]) => `${short(piece(id), 30)} ${percent(one)}`).join(", ")}`,
    );
  });
  return made;
}

/** The lines from the encoder's end to every cross-attention. */
function drawCrossing() {
  const picture = byId("crossing");
  if (!picture) return;
  const frame = byId("stacks").getBoundingClientRect();
  const [encoder] = byId("stacks").querySelectorAll('[data-stack="encoder"]');
  const end = encoder.children[1].getBoundingClientRect(); // below the title
  const start = [end.left - frame.left + SPINE, end.top - frame.top + 4];
  const lane = encoder.getBoundingClientRect().right - frame.left + 12;
  const ends = [...byId("stacks").querySelectorAll(".part.kind-cross-attention")].map((row) => {
    const box = row.querySelector(".box").getBoundingClientRect();
    return [box.left - frame.left, box.top - frame.top + box.height / 2];
  });
  picture.replaceChildren(
    drawn("path", { d: `M ${start[0]} ${end.bottom - frame.top} V ${start[1] + 6} q 0 -6 6 -6 H ${lane - 6}` }),
    ...ends.map(([x, y]) => drawn("path", { d: `M ${lane - 6} ${start[1]} Q ${lane} ${start[1]} ${lane} ${start[1] + (y < start[1] ? -6 : 6)} V ${y + (y < start[1] ? 6 : -6)} Q ${lane} ${y} ${lane + 6} ${y} H ${x}` })),
  );
}

function showNetwork() {
  for (const draw of drawnParts) draw();
  if (!byId("stacks").contains(document.activeElement)) tabStop(byId("stacks"));
}

/** Look into a part; with its heads, or one of them, in the panel for attention. */
function see(part, head) {
  look({ see: part.writes, head, tab: "attention" });
  if (matchMedia("(max-width: 62rem)").matches) byId("panels").scrollIntoView();
}

// --------------------------------------------------------------------------------------------------- panels

const panels = {}; // for each tab: key() of what it was built for, build(root), update()

function buildTabs() {
  byId("tabs").replaceChildren(
    ...Object.entries(TABS).map(([tab, name]) =>
      button({ role: "tab", id: `tab-${tab}`, "aria-controls": "panel", click: () => look({ tab }) }, name),
    ),
  );
  byId("tabs").addEventListener("keydown", (event) => {
    const names = Object.keys(TABS);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const tab = names[(names.indexOf(state.tab) + step + names.length) % names.length];
    look({ tab });
    byId(`tab-${tab}`).focus();
  });
}

function showPanel() {
  for (const tab of Object.keys(TABS)) {
    const made = byId(`tab-${tab}`);
    made.setAttribute("aria-selected", tab === state.tab);
    made.tabIndex = tab === state.tab ? 0 : -1;
  }
  const panel = panels[state.tab];
  const key = `${recording.id} ${state.tab} ${panel.key()}`;
  const root = byId("panel");
  root.setAttribute("aria-labelledby", `tab-${state.tab}`);
  if (showPanel.key !== key) {
    showPanel.key = key;
    refill(root);
    panel.build(root);
  }
  panel.update();
}

/** How to get the same numbers in Python. */
const inPython = (code) => element("details", {}, element("summary", {}, "The same in Python"), element("pre", { tabindex: 0 }, code));

function pythonInput() {
  const load = `model, tokenizer = load_model(${JSON.stringify(model.name)}), load_tokenizer(${JSON.stringify(model.name)})`;
  const text = short(recording.text, 200);
  const ids = run().ids.slice(0, -1).join(", ");
  return isT5
    ? `${load}\nsource = torch.tensor([tokenizer.encode(${JSON.stringify(text)})])\ntarget = torch.tensor([[${ids}]])\n`
    : `${load}\nids = torch.tensor([tokenizer.encode(${JSON.stringify(text)})])\n`;
}

const pythonCall = () => (isT5 ? "model(source, decoder_input_ids=target)" : "model(ids)");

// Attention

const maps = new Map(); // pictures of attention, one pixel a weight, by what they show
const MOST_MAPS = 60;

/** A picture of a head's weights, queries down and keys across; null while they are being unpacked. */
function picture(part, head) {
  const name = `${recording.id} ${state.run} ${part.pattern} ${head}`;
  if (maps.has(name)) return maps.get(name);
  const [height, width] = [queries(part).length, keys(part).length];
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = shades(part.kind);
  for (let query = 0; query < height; query++) {
    const row = levels(part, head, query);
    if (!row) return null;
    const count = Math.min(row.length, width);
    for (let key = 0; key < count; key++) pixels[query * width + key] = colours[row[key]];
    pixels.fill(colours[0], query * width + count, (query + 1) * width);
  }
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (maps.size >= MOST_MAPS) maps.delete(maps.keys().next().value);
  maps.set(name, canvas);
  return canvas;
}

/** 256 colours from the background to a kind's hue, as little-endian RGBA. */
function shades(kind) {
  const read = (colour) => colour.match(/[0-9a-f]{2}/gi).map((two) => parseInt(two, 16));
  const [from, to] = [read(inks.sunk), read(kind === "cross-attention" ? inks.cross : inks.self)];
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const [red, green, blue] = from.map((start, channel) => Math.round(start + ((to[channel] - start) * level) / 255));
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

panels.attention = {
  key: () => `${state.see} ${state.head < 0} ${state.run}`,
  build(root) {
    const part = parts[state.see];
    root.className = `kind-${part.kind}`;
    if (!part.pattern) buildSizes(root, part);
    else if (state.head < 0) buildAllHeads(root, part);
    else buildHead(root, part);
  },
  update() {
    this.draw();
  },
  draw() {},
};

/** A feed-forward layer has no attention: how much it adds, at every token. */
function buildSizes(root, part) {
  const table = element("tbody");
  fill(root,
    element("h3", {}, title(part)),
    element("p", { class: "soft" }, "It looks at one token at a time, so there is no attention to see. What it adds to the residual stream is a vector; ",
      "this is its size (Euclidean norm), and the stream’s behind it."),
    element("div", { class: "scroller" }, element("table", { class: `bars kind-${part.kind}` },
      element("caption", {}, element("code", {}, part.writes)),
      element("thead", {}, element("tr", {}, ...["position", "token", "adds", "", "stream"].map((one) => element("th", { scope: "col" }, one)))),
      table)),
    inPython(`${pythonInput()}with record(model, "${part.writes}") as acts:\n    ${pythonCall()}\nacts["${part.writes}"].norm(dim=-1)  # (B, T)`),
  );
  panels.attention.draw = () => {
    const sizes = queries(part).map((_, at) => size("written", part.writes, part, at));
    const most = Math.max(...sizes) || 1;
    const around = windowOf(queries(part).length, position(part), 40);
    refill(table, ...around.map((at) =>
      element("tr", { class: at === position(part) ? "chosen" : "" },
        element("td", { class: "number rank" }, String(at)),
        element("td", {}, token(queries(part)[at])),
        element("td", { class: "share" }, element("span", { class: "measure" }, element("i", { style: { "--weight": (sizes[at] / most).toFixed(3) } }))),
        element("td", { class: "number" }, number(sizes[at])),
        element("td", { class: "number" }, number(size("stream", part.after, part, at))))));
  };
}

/** All heads of one attention, small. */
function buildAllHeads(root, part) {
  const canvases = [];
  fill(root,
    element("h3", {}, `${title(part)}: all heads`),
    element("p", { class: "soft" }, mapHint(part)),
    element("div", { class: "small-maps" }, ...Array.from({ length: model.heads }, (_, head) => {
      const canvas = element("canvas", { "aria-hidden": "true" });
      canvases.push(canvas);
      return button({ click: () => look({ head }), "data-key": `map ${head}`, "aria-label": `Head ${head}, larger` }, `head ${head}`, canvas);
    })),
  );
  roving(root.querySelector(".small-maps"));
  tabStop(root.querySelector(".small-maps"));
  panels.attention.draw = () => canvases.forEach((canvas, head) => {
    const image = picture(part, head);
    if (!image || canvas.image === image) return;
    // Short texts are enlarged, so that a weight is a square.
    const scale = Math.max(1, Math.floor(240 / Math.max(image.width, image.height)));
    Object.assign(canvas, { width: image.width * scale, height: image.height * scale, image });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
  });
}

const mapHint = (part) =>
  `Each row is a token that looks, each column a token that is looked at${looksAtSource(part) && !readsSource(part) ? " in the encoder" : ""}. `
  + "The colour goes with the square root of the weight, so that small ones can be seen.";

const MOST_LABELS = 70; // keys that may have their token written above, where the map is as wide as the panel
const LABELS = { left: 96, top: 88, from: 10 }; // room for tokens beside a map whose cells have that many pixels

/** One head: its weights as a map, and where the current token looks as a table. */
function buildHead(root, part) {
  const heading = element("h3");
  const readout = element("p", { class: "soft", "aria-live": "polite" });
  const [rows, columns] = [queries(part), keys(part)];
  const canvas = element("canvas", { role: "img", tabindex: 0 });
  const cursor = element("canvas", { "aria-hidden": "true", style: { position: "absolute", inset: "0", "pointer-events": "none" } });
  const scroller = element("div", { class: "scroller" }, element("div", { style: { position: "relative", width: "max-content" } }, canvas, cursor));
  const table = element("tbody");
  const caption = element("caption");
  const code = element("div");
  fill(root,
    element("div", { class: "head-line" },
      button({ click: () => look({ head: (state.head + model.heads - 1) % model.heads }), "aria-label": "Previous head", "data-key": "previous" }, "‹"),
      heading,
      button({ click: () => look({ head: (state.head + 1) % model.heads }), "aria-label": "Next head", "data-key": "following" }, "›"),
      button({ click: () => look({ head: -1 }) }, "All heads"),
      button({ click: () => look({ tab: "change", changes: `${part.z}:${state.head}` }) }, "Knock it out")),
    element("p", { class: "soft" }, mapHint(part)),
    element("div", { class: "attention" },
      element("div", { class: columns.length > 24 && columns.length <= MOST_LABELS ? "map wide" : "map" }, scroller, readout),
      element("div", { class: "looks" }, element("table", { class: "bars" }, caption,
        element("thead", {}, element("tr", {}, ...["position", "token", "weight", ""].map((one) => element("th", { scope: "col" }, one)))), table))),
    code,
  );
  let pointed = null; // the weight under the pointer or the arrows: [query, key]
  let room = 0; // the pixels across that there are for the map
  let cell = 1; // those of a weight
  let left = 0;
  let top = 0;
  const pick = (event) => {
    const box = canvas.getBoundingClientRect();
    const [key, query] = [Math.floor((event.clientX - box.left - left) / cell), Math.floor((event.clientY - box.top - top) / cell)];
    return query >= 0 && key >= 0 && query < rows.length && key < columns.length ? [query, key] : null;
  };
  const point = (where) => {
    pointed = where;
    drawCursor();
  };
  canvas.addEventListener("pointermove", (event) => point(pick(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const where = pick(event);
    if (where) look(readsSource(part) ? { src: where[0] } : { at: where[0] });
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [query, key] = pointed ?? [position(part), 0];
    const clamp = (value, most) => Math.max(0, Math.min(value, most - 1));
    point([clamp(query + step[0], rows.length), clamp(key + step[1], columns.length)]);
    if (step[0]) look(readsSource(part) ? { src: pointed[0] } : { at: pointed[0] });
  });

  function drawMap() {
    const image = room > 0 ? picture(part, state.head) : null;
    if (!image || (canvas.image === image && canvas.room === room)) return;
    Object.assign(canvas, { image, room });
    const labelled = Math.min(24, Math.floor((room - LABELS.left) / columns.length));
    const labels = labelled >= LABELS.from;
    [left, top] = labels ? [LABELS.left, LABELS.top] : [0, 0];
    cell = labels ? labelled : Math.min(4000 / columns.length, Math.max(room / columns.length, 1.5), 24);
    const [width, height] = [left + cell * columns.length, top + cell * rows.length];
    const ratio = Math.min(devicePixelRatio, 8000 / Math.max(width, height));
    for (const one of [canvas, cursor]) {
      Object.assign(one, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
      Object.assign(one.style, { width: `${width}px`, height: `${height}px` });
      one.getContext("2d").scale(ratio, ratio);
    }
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, left, top, cell * columns.length, cell * rows.length);
    if (labels) drawLabels(context, rows, columns, cell);
    canvas.setAttribute(
      "aria-label",
      `Attention of ${title(part)}, head ${state.head}: ${rows.length} by ${columns.length} weights. `
      + "Arrows move over them; the table beside it holds the largest of the current token.",
    );
  }

  function drawCursor() {
    const context = cursor.getContext("2d");
    context.clearRect(0, 0, cursor.width, cursor.height);
    context.strokeStyle = inks.text;
    context.lineWidth = 1.5;
    context.strokeRect(left, top + position(part) * cell, cell * columns.length, Math.max(cell, 2));
    if (!pointed) {
      readout.textContent = "Point at the map, or move over it with the arrows. A click makes its row the current token.";
      return;
    }
    const [query, key] = pointed;
    context.strokeRect(left + key * cell - 1, top + query * cell - 1, cell + 2, cell + 2);
    const row = levels(part, state.head, query);
    const value = row && key < row.length ? weight(row[key]) : 0;
    readout.textContent = `from ${quoted(rows[query])} (${query}) to ${quoted(columns[key])} (${key}): ${number(value)}`;
  }

  panels.attention.draw = () => {
    heading.textContent = `${title(part)}, head ${state.head}`;
    drawMap();
    drawCursor();
    const query = shownQuery(part);
    const row = levels(part, state.head, query);
    if (!row) return;
    caption.textContent = `Where ${quoted(rows[query])} (${query}) looks`;
    const strongest = [...row.keys()].slice(0, columns.length).filter((key) => row[key] > 0).sort((a, b) => row[b] - row[a]).slice(0, 10);
    refill(table, ...strongest.map((key) =>
      element("tr", {},
        element("td", { class: "number rank" }, String(key)),
        element("td", {}, token(columns[key])),
        element("td", { class: "number" }, number(weight(row[key]))),
        element("td", { class: "share" }, element("span", { class: "measure" }, element("i", { style: { "--weight": weight(row[key]).toFixed(3) } }))))));
    if (code.dataset.head !== String(state.head)) {
      code.dataset.head = state.head;
      refill(code, inPython(`${pythonInput()}with record(model, "${part.pattern}") as acts:\n    ${pythonCall()}\nacts["${part.pattern}"][0, ${state.head}]  # (T, S)`));
    }
  };
  new ResizeObserver(([entry]) => {
    room = entry.contentRect.width;
    show();
  }).observe(scroller);
}

function drawLabels(context, rows, columns, cell) {
  context.fillStyle = inks.soft;
  context.font = `${Math.min(12, cell)}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  rows.forEach((id, query) => {
    context.textAlign = "right";
    context.fillText(marked(id, 13), LABELS.left - 5, LABELS.top + (query + 0.5) * cell, LABELS.left - 8);
  });
  columns.forEach((id, key) => {
    context.save();
    context.translate(LABELS.left + (key + 0.5) * cell, LABELS.top - 5);
    context.rotate(-Math.PI / 2.6);
    context.textAlign = "left";
    context.fillText(marked(id, 12), 0, 0, LABELS.top);
    context.restore();
  });
}

/** Positions around one, at most so many. */
function windowOf(length, middle, most) {
  const first = Math.max(0, Math.min(middle - (most >> 1), length - most));
  return Array.from({ length: Math.min(most, length) }, (_, step) => first + step);
}

// Next token

const TOP_K = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 0]; // 0: all
const MOST_ROWS = 20;

panels.next = {
  key: () => "",
  build(root) {
    root.className = "";
    const steps = recording.temperatures;
    const choices = TOP_K.filter((k) => k <= recording.runs[0].next.ids.shape[1]);
    this.heading = element("h3");
    this.temperature = element("input", { type: "range", min: 0, max: steps.length - 1, id: "temperature", "aria-label": "Temperature",
      input: (event) => look({ temperature: steps[event.target.value] }) });
    this.temperatureText = element("output", { class: "number" });
    this.k = element("input", { type: "range", min: 0, max: choices.length - 1, id: "top-k", "aria-label": "Top-k",
      input: (event) => look({ k: choices[event.target.value] }) });
    this.kText = element("output", { class: "number" });
    this.choices = choices;
    this.body = element("tbody");
    this.rest = element("p", { class: "soft" });
    fill(root,
      this.heading,
      element("div", { class: "sliders" },
        element("label", {}, element("span", {}, "Temperature"), this.temperature, this.temperatureText),
        element("label", {}, element("span", {}, "Top-k"), this.k, this.kText)),
      element("table", { class: "bars" },
        element("caption", {}, "Probability of each next token. The thin line: without the sliders."),
        element("thead", {}, element("tr", {}, ...["rank", "token", "probability", ""].map((one) => element("th", { scope: "col" }, one)))),
        this.body),
      this.rest,
      live ? button({ click: sampleAgain }, "Sample an answer with these settings") : null,
      element("p", { class: "soft" },
        `Recorded: the ${recording.runs[0].next.ids.shape[1]} likeliest logits at each position, and the logarithm of the whole vocabulary’s sum at each temperature. `,
        "So these probabilities are exact at every setting of the sliders, and all others together are the rest."),
    );
  },
  update() {
    const { tokens, chosen, probability, rank, plain } = nextTokens(state.at);
    this.heading.textContent = `After ${quoted(run().ids[state.at])} (position ${state.at})`;
    this.temperature.value = recording.temperatures.indexOf(state.temperature);
    this.temperatureText.textContent = state.temperature.toFixed(1);
    const nearby = this.choices.map((k) => (state.k === 0 ? (k === 0 ? 0 : 1) : k === 0 ? 1e6 : Math.abs(k - state.k)));
    this.k.value = nearby.indexOf(Math.min(...nearby));
    this.k.setAttribute("aria-valuetext", state.k || "all");
    this.kText.textContent = state.k || "all";
    const rows = tokens.slice(0, MOST_ROWS).map(([id, one], place) => this.row(place, id, one, plain(id), id === chosen));
    if (rank === null || rank >= rows.length) rows.push(this.row(rank, chosen, probability, plain(chosen), true));
    refill(this.body, ...rows);
    const shown = tokens.slice(0, MOST_ROWS).reduce((sum, [, one]) => sum + one, 0);
    this.rest.textContent = `The first ${Math.min(MOST_ROWS, tokens.length)} together ${percent(shown)}, all others ${percent(Math.max(0, 1 - shown))}.`;
  },
  row: (rank, id, probability, plain, isChosen) =>
    element("tr", { class: isChosen ? "chosen" : "", "data-token": id },
      element("td", { class: "number rank" }, rank === null ? "" : String(rank + 1)),
      element("td", {}, token(id), isChosen ? " ← written" : ""),
      element("td", { class: "number" }, percent(probability)),
      element("td", { class: "share" }, element("span", { class: "measure" },
        element("i", { style: { "--weight": probability.toFixed(4) } }),
        plain === null ? null : element("u", { style: { "--mark": plain.toFixed(4) } })))),
};

// Logit lens

const MOST_COLUMNS = 24;

panels.lens = {
  key: () => "",
  build(root) {
    root.className = "";
    this.table = element("table", { class: "lens" });
    this.body = element("tbody");
    this.caption = element("caption");
    fill(root,
      element("h3", {}, "Logit lens"),
      element("p", { class: "soft" },
        "What the model would say if it stopped after a block: the residual stream there, read by its final norm and head. ",
        "The top row is what it does say. A frame: the token that was written. Colour: the probability."),
      element("div", { class: "scroller", id: "lens-grid" }, this.table),
      element("table", { class: "bars" }, this.caption,
        element("thead", {}, element("tr", {}, ...["rank", "token", "probability", ""].map((one) => element("th", { scope: "col" }, one)))), this.body),
      inPython(isT5
        ? `${pythonInput()}lens = logit_lens(model, source, decoder_input_ids=target)  # (blocks, B, T, V)`
        : `${pythonInput()}lens = logit_lens(model, ids)  # (blocks, B, T, V)`),
    );
    roving(this.table);
  },
  update() {
    const around = windowOf(positions(), state.at, MOST_COLUMNS);
    const blocks = stacks.at(-1).blocks.map((_, block) => block).reverse();
    refill(this.table,
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "reads"), ...around.map((at) => element("th", { scope: "col" }, token(run().ids[at]))))),
      element("tbody", {}, ...blocks.map((block) =>
        element("tr", {}, element("th", { scope: "row" }, `block ${block}`), ...around.map((at) => {
          const [[id, probability]] = lensOf(block, at);
          const kind = `${id === run().ids[at + 1] ? "right" : ""} ${at === state.at ? "here" : ""}`;
          return element("td", { class: kind }, button({
            "data-key": `${block} ${at}`, dir: "auto", click: () => look({ block, at }), style: { "--weight": probability.toFixed(3) },
            title: `${short(piece(id), 200)}: ${percent(probability)}`,
            "aria-label": `Block ${block}, position ${at}: ${short(piece(id), 60)}, ${percent(probability)}`,
            "aria-pressed": block === state.block && at === state.at,
          }, marked(id, 20)));
        })))));
    tabStop(this.table);
    this.caption.textContent = `After block ${state.block}, at ${quoted(run().ids[state.at])} (position ${state.at})`;
    refill(this.body, ...lensOf(state.block, state.at).map(([id, probability], rank) =>
      panels.next.row(rank, id, probability, null, id === run().ids[state.at + 1])));
  },
};

// Beams

const STEP = { width: 140, height: 30, top: 22 };

panels.beams = {
  key: () => "",
  build(root) {
    root.className = "";
    const steps = beamNodes();
    const beams = recording.search.num_beams;
    const most = Math.max(...steps.map((step) => step.length));
    const [width, height] = [steps.length * STEP.width, STEP.top + most * STEP.height];
    const lines = drawn("svg", { width, height, "aria-hidden": "true" });
    const tree = element("div", { class: "beams", style: { width: `${width}px`, height: `${height}px` } }, lines);
    this.nodes = [];
    steps.forEach((step, number) => {
      tree.append(element("span", { class: "step-name", style: { left: `${number * STEP.width}px` } }, `step ${number + 1}`));
      step.forEach((node, rank) => {
        const [x, y] = [number * STEP.width, STEP.top + rank * STEP.height];
        Object.assign(node, { x, y, name: `${number}.${rank}` });
        if (node.from) {
          const start = [node.from.x + 115, node.from.y + 13];
          const kind = node.best ? "best" : node.fate === "pruned" ? "" : "kept";
          lines.append(drawn("path", { class: kind, d: `M ${start[0]} ${start[1]} C ${start[0] + 14} ${start[1]}, ${x - 14} ${y + 13}, ${x} ${y + 13}` }));
        }
        const made = button({
          class: `${node.fate} ${node.best ? "best" : ""}`, style: { left: `${x}px`, top: `${y}px` }, "data-key": node.name,
          click: () => look({ beam: node.name }),
          "aria-label": `Step ${number + 1}, rank ${rank + 1}: ${short(piece(node.token), 40)}, score ${scoreText(node.score)}, ${node.fate}`,
        }, token(node.token), element("span", { class: "number" }, scoreText(node.score)));
        tree.append(made);
        this.nodes.push([node, made]);
      });
    });
    this.detail = element("div", { "aria-live": "polite" });
    fill(root,
      element("h3", {}, `Beam search with ${beams} beams`),
      element("p", { class: "soft" }, `Every step looks at the ${most} best one-token extensions of the running beams. The score is a sum of log-probabilities; when a hypothesis ends it is divided by its length.`),
      element("div", { class: "key" },
        element("span", {}, element("i", { style: { background: "var(--card)", "border-color": "var(--stream)" } }), "goes on"),
        element("span", {}, element("i", { style: { border: "2px solid var(--good)" } }), "finished"),
        element("span", {}, element("i", { style: { border: "2px dashed var(--good)" } }), "finished, displaced later"),
        element("span", {}, element("i", { style: { "border-style": "dashed" } }), "pruned"),
        element("span", {}, element("i", { style: { background: "var(--accent)" } }), "the answer")),
      element("div", { class: "scroller" }, tree),
      this.detail,
      this.asTable(steps),
    );
    roving(tree);
    tabStop(tree);
  },
  update() {
    const selected = this.nodes.find(([node]) => node.name === state.beam) ?? this.nodes.findLast(([node]) => node.best);
    for (const [node, made] of this.nodes) made.setAttribute("aria-pressed", node === selected?.[0]);
    if (!selected) return;
    const [node] = selected;
    refill(this.detail,
      element("p", { class: "answer" }, element("b", {}, node.best ? "answer " : "text "), ...node.tokens.map((id) => token(id))),
      element("p", {}, `Score ${scoreText(node.score)}; its last token had the probability ${percent(Math.exp(node.log_prob))}. `, FATES[node.fate],
        node.final_score === null ? "" : ` Divided by its length, the score is ${scoreText(node.final_score)}.`));
  },
  asTable: (steps) => {
    const details = element("details", {}, element("summary", {}, "As a table"));
    details.addEventListener("toggle", () => {
      if (details.querySelector("table")) return;
      details.append(element("div", { class: "scroller" }, element("table", {},
        element("thead", {}, element("tr", {}, ...["step", "rank", "text so far", "score", ""].map((one) => element("th", { scope: "col" }, one)))),
        element("tbody", {}, ...steps.flatMap((step, number) => step.map((node, rank) =>
          element("tr", {}, ...[String(number + 1), String(rank + 1), element("span", {}, ...node.tokens.map((id) => token(id))), scoreText(node.score), node.fate].map((cell) => element("td", {}, cell)))))))));
    });
    return details;
  },
};

const scoreText = (score) => score.toFixed(2);
const FATES = {
  running: "It went on.",
  pruned: "It was pruned: others were likelier.",
  finished: "It ended, and is among the best.",
  displaced: "It ended, but better ones came later.",
};

/** The candidates of every step, each with the one that it goes on from and all that it says. */
function beamNodes() {
  const answer = recording.runs.find((one) => one.name === "beams");
  const written = answer.ids.slice(answer.prompt_length);
  const steps = [];
  for (const step of recording.beams) {
    steps.push(step.map((candidate) => {
      const from = candidate.parent === null ? null : steps.at(-1)[candidate.parent];
      const tokens = [...(from?.tokens ?? []), candidate.token];
      return { ...candidate, from, tokens, best: tokens.every((id, place) => id === written[place]) };
    }));
  }
  return steps;
}

// Change

/** The kinds of activations that can be patched, each a name for every block. Offline, the first was recorded. */
function kindsOfPatch() {
  const kinds = [];
  for (const stack of live ? stacks : stacks.slice(0, 1)) {
    const where = isT5 ? `${stack.name}: ` : "";
    kinds.push({ title: `${where}residual stream after`, stack: stack.name, names: stack.blocks.map((block) => block.at(-1).after) });
    if (live) {
      stack.blocks[0].forEach((part, number) =>
        kinds.push({ title: `${where}what ${part.kind} adds in`, stack: stack.name, names: stack.blocks.map((block) => block[number].writes) }));
    }
  }
  return kinds;
}

/** "decoder.z.1:3" is head 3 knocked out, "encoder.resid_post.0@5<7" position 5 from the second text's 7. */
function readChange(word) {
  const knock = word.match(/^([\w.]+):(\d+)$/);
  if (knock) return { z: knock[1], head: Number(knock[2]) };
  const patch = word.match(/^([\w.]+)@(\d+)<(\d+)$/);
  return patch ? { name: patch[1], position: Number(patch[2]), other_position: Number(patch[3]) } : null;
}

const changes = () => state.changes.split(";").filter((word) => readChange(word));
const knockedOut = () => new Set(changes());
const heads = Object.values(parts).filter((part) => part.pattern).flatMap((part) => Array.from({ length: model.heads }, (_, head) => ({ part, head, word: `${part.z}:${head}` })));

/** Choose a change; the same again takes it back. Live, several can be combined. */
function choose(word) {
  const now = changes();
  const without = now.filter((one) => one !== word);
  if (live && state.combine) look({ changes: (without.length < now.length ? without : [...now, word]).join(";") });
  else look({ changes: without.length < now.length && now.length === 1 ? "" : word });
}

/** The answer's tokens, which are the first run's, and what the model thought of each. */
function answerBefore() {
  const first = recording.runs[0];
  const ids = first.ids.slice(first.prompt_length);
  const one = recording.temperatures.indexOf(1);
  const logs = ids.map((_, step) => {
    const at = first.prompt_length - 1 + step;
    return first.next.chosen_logit.values[at] - rowOf(first.next.log_sums, at)[one];
  });
  return { ids, logs };
}

/** Which token of the answer the current position writes. */
const currentStep = () => {
  const first = recording.runs[0];
  return Math.max(0, Math.min(state.at - first.prompt_length + 1, first.ids.length - first.prompt_length - 1));
};

/** How much less likely (nats) the answer, or its current token, has become. */
function effect(logs) {
  const before = answerBefore().logs;
  if (state.effect === "token") return before[currentStep()] - logs[currentStep()];
  return before.reduce((sum, one, step) => sum + one - logs[step], 0);
}

/** One outcome out of a sweep, as the server would have answered. */
function outcomeOf(sweep, index) {
  return {
    ids: sweep.answers[sweep.answer[index]],
    log_probabilities: rowOf(sweep.log_probabilities, index),
    next: (step) => Array.from(rowOf(sweep.next_ids, index, step), (id, rank) => [id, Math.exp(rowOf(sweep.next_log_probabilities, index, step)[rank])]),
  };
}

/** Where in a sweep a change is, or null. */
function placeInSweep(word) {
  const change = readChange(word);
  if (change.z && content.knock_outs?.answers) {
    const index = heads.findIndex((one) => one.word === word);
    return index < 0 ? null : [content.knock_outs, index];
  }
  const sweep = content.transplants;
  if (change.name && sweep?.answers && change.position === change.other_position) {
    const block = sweep.names.indexOf(change.name);
    return block < 0 || change.position >= source().length ? null : [sweep, block * source().length + change.position];
  }
  return null;
}

panels.change = {
  key: () => `${state.kind} ${Boolean(content.knock_outs?.answers)} ${Boolean(content.transplants?.answers)}`,
  build(root) {
    root.className = "";
    this.outcome = element("div", { class: "result", "aria-live": "polite" });
    this.buttons = new Map(); // the word of a change -> its button and how to find its effect
    fill(root,
      element("h3", {}, "Change something inside, and see what the model says"),
      element("p", { class: "soft" }, "A number: how much less likely the greedy answer became, in nats (its log-probability before, minus now). Click one to see what was written instead."),
      element("div", { class: "head-line" },
        element("label", {}, "Effect on ", element("select", { id: "effect", change: (event) => look({ effect: event.target.value }) },
          element("option", { value: "answer" }, "the whole answer"), element("option", { value: "token" }, "the token at the current position"))),
        live ? element("label", {}, element("input", { type: "checkbox", id: "combine", change: (event) => look({ combine: event.target.checked }) }), " combine several") : null,
        button({ click: () => look({ changes: "" }), id: "undo" }, "Undo all")),
      this.outcome,
      element("div", { class: "change" }, this.buildKnockOuts(), this.buildTransplants()),
    );
    root.querySelectorAll(".effects").forEach((table) => {
      roving(table);
      tabStop(table);
    });
  },
  /** A row for each attention, a column for each head. */
  buildKnockOuts() {
    const rows = Object.values(parts).filter((part) => part.pattern).reverse();
    return element("div", {},
      element("h3", {}, "Knock a head out"),
      element("p", { class: "soft" }, "It then adds nothing to the residual stream, at no token."),
      this.sweepNote("knock_outs", "/knock-outs", "Measure all heads"),
      element("div", { class: "scroller" }, element("table", { class: "effects", id: "knock-outs" },
        element("thead", {}, element("tr", {}, element("th", {}, "head"), ...Array.from({ length: model.heads }, (_, head) => element("th", { scope: "col" }, String(head))))),
        element("tbody", {}, ...rows.map((part) => element("tr", {}, element("th", { scope: "row" }, title(part).replace(", self-attention", ", self").replace("-attention", "")),
          ...Array.from({ length: model.heads }, (_, head) => element("td", {}, this.cell(`${part.z}:${head}`, `${title(part)}, head ${head}`)))))))));
  },
  /** A row for each position, a column for each block. */
  buildTransplants() {
    const kinds = kindsOfPatch();
    const kind = kinds[state.kind];
    const root = element("div", {}, element("h3", {}, "Patch from a second text"));
    if (!content.other) {
      fill(root, element("p", { class: "soft" }, live
        ? "Give a second text above: its activations can then be put in the place of this text’s."
        : "No second text was given when this page was recorded. It is the option --other of python -m ftcore.explore."));
      return root;
    }
    const inEncoder = isT5 && kind.stack === "encoder";
    const own = isT5 && !inEncoder ? recording.runs[0].ids.slice(0, -1) : source();
    const others = isT5 && !inEncoder ? content.other.ids.slice(0, -1) : content.other.source[0];
    const corresponds = own.length === others.length;
    root.append(element("p", { class: "soft" }, "At one token, the activation becomes what it is in the second text."));
    if (live) {
      root.append(element("label", { class: "wide" }, "Activation ", element("select", { id: "kind", change: (event) => look({ kind: Number(event.target.value), changes: "" }) },
        ...kinds.map((one, number) => element("option", { value: number, selected: number === state.kind }, `${one.title} each block`)))));
    }
    const canChoose = live || corresponds;
    if (state.kind === 0) fill(root, this.sweepNote("transplants", "/transplants", "Measure all"));
    if (live) {
      root.append(element("label", { class: "wide" }, "from the second text’s position ", element("select", { id: "from", change: (event) => look({ from: event.target.value === "" ? null : Number(event.target.value) }) },
        element("option", { value: "" }, corresponds ? "that is the same" : "nearest in number"),
        ...others.map((id, at) => element("option", { value: at }, `${at}: ${marked(id, 30)}`)))));
    }
    const from = (at) => Math.min(state.from ?? at, others.length - 1);
    root.append(element("div", { class: "scroller" }, element("table", { class: "effects", id: "transplants" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "this text"), element("th", { scope: "col" }, "second text"), ...kind.names.map((_, block) => element("th", { scope: "col" }, `${block}`)))),
      element("tbody", {}, ...own.map((id, at) => element("tr", {},
        element("th", { scope: "row" }, token(id)),
        element("td", {}, at < others.length ? token(others[at], others[at] === id ? {} : { style: { "--weight": "0.8", "--hue": "var(--cross)" } }) : ""),
        ...kind.names.map((name, block) => element("td", {}, canChoose ? this.cell(() => `${name}@${at}<${from(at)}`, `Position ${at}, ${short(piece(id), 30)}, ${kind.title} block ${block}`) : ""))))))));
    return root;
  },
  cell(word, says) {
    const read = typeof word === "function" ? word : () => word;
    const made = button({ click: () => choose(read()), "data-key": read() });
    this.buttons.set(made, [read, says]);
    return made;
  },
  /** What a page that cannot compute lacks, or how to have everything computed. */
  sweepNote(name, path, says) {
    const sweep = content[name];
    if (sweep?.answers) return null;
    if (!live) return element("p", { class: "soft missing" }, sweep?.missing ?? "");
    return element("p", {}, sweep?.missing ? element("span", { class: "soft" }, sweep.missing) : button({ click: () => measure(name, path) }, says));
  },
  update() {
    byId("effect").value = state.effect;
    if (byId("combine")) byId("combine").checked = state.combine;
    if (byId("from")) byId("from").value = state.from ?? "";
    byId("undo").disabled = changes().length === 0;
    const chosen = new Set(changes());
    for (const [made, [read, says]] of this.buttons) {
      const word = read();
      const where = placeInSweep(word);
      const value = where ? effect(rowOf(where[0].log_probabilities, where[1])) : null;
      made.setAttribute("aria-pressed", chosen.has(word));
      made.textContent = value === null ? "" : Math.abs(value) < 0.05 ? "·" : value.toFixed(Math.abs(value) < 10 ? 1 : 0);
      made.style.setProperty("--weight", value === null ? 0 : (1 - Math.exp(-Math.abs(value))).toFixed(3));
      made.style.setProperty("--shade", value !== null && value < 0 ? "var(--good)" : "var(--bad)");
      made.setAttribute("aria-label", value === null ? says : `${says}: ${number(value)} nats less likely`);
      made.title = made.getAttribute("aria-label");
    }
    this.showOutcome();
  },
  showOutcome() {
    const words = changes();
    if (!words.length) {
      refill(this.outcome, element("p", { class: "soft" }, "Nothing is changed. Choose a head or a patch below."));
      return;
    }
    const where = words.length === 1 ? placeInSweep(words[0]) : null;
    const now = where ? outcomeOf(...where) : live ? askOutcome(words) : null;
    if (!now) {
      refill(this.outcome, element("p", {}, live ? "Computing …" : "This page holds the changes that were recorded, one at a time. With --serve any can be made, together too."));
      return;
    }
    const { ids, logs } = answerBefore();
    const step = currentStep();
    const before = nextTokensOfFirst(step);
    refill(this.outcome,
      element("p", {}, `Changed: ${words.map(inWords).join("; ")}`),
      element("p", { class: "answer", id: "answer-was" }, element("b", {}, "before "), ...ids.map((id) => token(id))),
      element("p", { class: "answer", id: "answer-is" }, element("b", {}, "now "), ...now.ids.map((id, at) => token(id, id === ids[at] ? {} : { class: "token differs" }))),
      element("div", { class: "change" },
        element("table", { class: "bars" }, element("caption", {}, "Probability of the first answer’s tokens now. The thin line: before."),
          element("tbody", {}, ...ids.map((id, at) => panels.next.row(at, id, Math.exp(now.log_probabilities[at]), Math.exp(logs[at]), false)))),
        element("table", { class: "bars", id: "next-now" }, element("caption", {}, `In place of ${quoted(ids[step])} now. The thin line: before.`),
          element("tbody", {}, ...now.next(step).map(([id, one], rank) => panels.next.row(rank, id, one, before(id), id === ids[step]))))));
  },
};

/** A change in words. */
function inWords(word) {
  const change = readChange(word);
  if (change.z) {
    const part = Object.values(parts).find((one) => one.z === change.z);
    return part ? `${title(part)}, head ${change.head} knocked out` : word;
  }
  return `${change.name} at position ${change.position} from the second text’s position ${change.other_position}`;
}

/** A token's probability, before any change, at a step of the first run's answer; null beyond those recorded. */
function nextTokensOfFirst(step) {
  const first = recording.runs[0];
  const at = first.prompt_length - 1 + step;
  const one = recording.temperatures.indexOf(1);
  return (id) => {
    const rank = rowOf(first.next.ids, at).indexOf(id);
    return rank < 0 ? null : Math.exp(rowOf(first.next.logits, at)[rank] - rowOf(first.next.log_sums, at)[one]);
  };
}

// --------------------------------------------------------------------------------------------------- server

const outcomes = new Map(); // the words of changes -> what came of them, or null while it is being computed

/** Ask the server. What it says against it is shown at the top of the page. */
async function ask(path, question) {
  byId("error").hidden = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });
    const said = await response.json();
    if (!response.ok) throw new Error(said.error);
    await unpackAll(said);
    Object.assign(texts, said.pieces);
    return said;
  } catch (error) {
    showError(error instanceof TypeError ? "The server does not answer. Is python -m ftcore.explore still running?" : error.message);
    return null;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function showError(message) {
  byId("error").textContent = message;
  byId("error").hidden = false;
}

const question = () => ({
  text: recording.text, ids: recording.runs[0].ids, other: content.other?.text ?? null, max_new_tokens: recording.search.max_new_tokens,
});

async function record(text, other, search) {
  const second = other ? await ask("/other", { text: other, max_new_tokens: search.max_new_tokens }) : null;
  if (other && !second) return;
  const said = await ask("/record", { text, search });
  if (!said) return;
  const samePlace = said.text === recording.text;
  recording = said;
  content.other = second;
  delete content.knock_outs;
  delete content.transplants;
  outcomes.clear();
  begin(samePlace);
  look({}); // the address names the text
}

/** The outcome of these changes if it is known; otherwise it is asked for, and drawn when it comes. */
function askOutcome(words) {
  const key = words.join(";");
  if (!outcomes.has(key)) {
    outcomes.set(key, null);
    ask("/outcome", { ...question(), interventions: words.map(readChange) }).then((said) => {
      if (said) {
        outcomes.set(key, {
          ids: said.ids,
          log_probabilities: said.log_probabilities.values,
          next: (step) => Array.from(rowOf(said.next_ids, step), (id, rank) => [id, Math.exp(rowOf(said.next_log_probabilities, step)[rank])]),
        });
        show();
      }
    });
  }
  return outcomes.get(key);
}

async function measure(name, path) {
  const said = await ask(path, question());
  if (!said) return;
  content[name] = said;
  look({});
}

async function sampleAgain() {
  const { temperature, k, at } = state;
  await record(recording.text, content.other?.text ?? "", { ...recording.search, temperature, top_k: k, seed: recording.search.seed + 1 });
  look({ run: recording.runs.findIndex((one) => one.name === "sampling"), at });
}

/** The form of a live page, or what a recorded one says in its place. */
function buildAsk() {
  const root = byId("ask");
  if (!live) return;
  const field = (name, says, value, step) => element("label", {}, says, element("input", { type: "number", name, value, step, required: true }));
  const { max_new_tokens, num_beams, temperature, top_k, seed } = recording.search;
  const form = element("form", {},
    element("label", { class: "wide" }, "Text", element("textarea", { name: "text", dir: "auto", spellcheck: "false" }, recording.text)),
    element("label", { class: "wide" }, "Second text, to patch from", element("textarea", { name: "other", dir: "auto", spellcheck: "false" }, content.other?.text ?? "")),
    element("div", { class: "fields" },
      field("max_new_tokens", "new tokens", max_new_tokens, 1), field("num_beams", "beams", num_beams, 1),
      field("temperature", "temperature", temperature, 0.1), field("top_k", "top-k", top_k, 1), field("seed", "seed", seed, 1),
      element("button", { class: "first" }, "Run")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    stop();
    const data = new FormData(form);
    const search = Object.fromEntries(["max_new_tokens", "num_beams", "temperature", "top_k", "seed"].map((name) => [name, Number(data.get(name))]));
    await record(data.get("text"), data.get("other"), search);
  });
  root.replaceChildren(element("details", { open: buildAsk.open ?? false, toggle: (event) => (buildAsk.open = event.target.open) },
    element("summary", {}, "Other texts and settings"), form));
}

// ---------------------------------------------------------------------------------------------------- start

/** Show a recording; `keep` what the reader looks at, where the text is still the same. */
function begin(keep = false) {
  recording.id = (begin.count = (begin.count ?? 0) + 1);
  maps.clear();
  buildTokens.of = null;
  const before = { ...state };
  firstState();
  if (keep) Object.assign(state, before);
  setRight();
  buildAsk();
  buildText();
  show();
}

function buildFrame() {
  byId("model-name").textContent = model.name;
  const depth = stacks.map((stack) => stack.blocks.length).join(" + ");
  byId("model-facts").textContent =
    `${model.architecture} · ${model.parameters.toLocaleString("en")} parameters · ${depth} blocks · ${model.heads} heads · width ${model.width}`;
  byId("mode").textContent = live ? "live" : "recorded, works offline";
  byId("footer").textContent =
    "Positions, blocks and heads are counted from 0, as in Python. ␣ is a space before a token, ⏎ a new line, #12 a token that is no text by itself. "
    + (live ? "" : "This page cannot compute: it shows the text that was recorded. For other texts and changes: python -m ftcore.explore --serve.");
  byId("theme").addEventListener("click", () => {
    chosenTheme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme();
    look({});
  });
  byId("copy-link").addEventListener("click", async () => {
    writeAddress();
    try {
      await navigator.clipboard.writeText(location.href);
      byId("copy-link").textContent = "Copied";
    } catch {
      byId("copy-link").textContent = "It is in the address bar";
    }
    setTimeout(() => (byId("copy-link").textContent = "Copy link"), 1500);
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds what is looked at
    byId("panels").focus();
  });
  byId("position").addEventListener("input", (event) => {
    stop();
    look({ at: Number(event.target.value) });
  });
  byId("back").addEventListener("click", () => {
    stop();
    look({ at: state.at - 1 });
  });
  byId("forth").addEventListener("click", () => {
    stop();
    look({ at: state.at + 1 });
  });
  byId("play").addEventListener("click", play);
  systemIsDark.addEventListener("change", () => {
    setTheme();
    show();
  });
  addEventListener("hashchange", readAddress);
  roving(byId("stacks"));
}

Object.assign(texts, content.pieces, content.other?.pieces, recording.pieces);
await unpackAll(content);
buildFrame();
setTheme();
buildTabs();
buildNetwork();
begin();
await readAddress();
document.documentElement.dataset.ready = "true";
