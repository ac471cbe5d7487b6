/* The view state, mirrored in the URL hash. */

const TABS = {
  attention: "Attention",
  computation: "Computation",
  next: "Next token",
  lens: "Logit lens",
  beams: "Beams",
  interventions: "Interventions",
};
const state = {}; // changed by `setState` only
const hover = { side: null, at: null }; // the token under the pointer

function resetState() {
  const stack = stacks.at(-1);
  const kind = isT5 ? "cross-attention" : "self-attention";
  const first = recording.runs[0];
  // Where the first word is generated, after T5's sentinels.
  const word = first.ids.findIndex((id, i) => i >= first.prompt_length && !piece(id).startsWith("<"));
  const at = Math.max(word, first.prompt_length) - 1;
  Object.assign(state, {
    run: 0,
    at,
    src: 0,
    part: stack.blocks.at(-1).find((part) => part.kind === kind).output,
    head: 0,
    tab: "attention",
    open: "", // what the computation shows, a key of OPENABLE; by default the sublayer itself
    key: null, // key position of the computation; null: the largest weight
    neuron: null, // neuron of the computation; null: the largest activation
    block: stack.blocks.length - 1,
    temperature: 1,
    k: 0,
    effect: "answer",
    interventions: "",
    beam: "",
    patchKind: 0,
    from: null,
    combine: false,
    tour: "",
  });
  // Start with the head that adds most.
  const norms = Array.from({ length: model.heads }, (_, head) => headNormAt(parts[state.part], head, at));
  state.head = norms.indexOf(Math.max(...norms));
}

/** Change the state, render all views and update the URL. */
function setState(changes) {
  Object.assign(state, changes);
  clampState();
  render();
  clearTimeout(setState.timer);
  setState.timer = setTimeout(writeAddress, 150); // browsers throttle replaceState
}

/** Clamp values from the URL or a slider to what exists. */
function clampState() {
  const within = (value, last) => Math.max(0, Math.min(Math.round(Number(value)) || 0, last));
  state.run = within(state.run, recording.runs.length - 1);
  state.at = within(state.at, positions() - 1);
  state.src = within(state.src, source().length - 1);
  if (!Object.hasOwn(parts, state.part)) state.part = Object.keys(parts)[0];
  state.head = Math.max(-1, Math.min(Math.round(Number(state.head)) || 0, model.heads - 1));
  if (state.key !== null) state.key = within(state.key, keys(parts[state.part]).length - 1);
  if (state.neuron !== null) state.neuron = within(state.neuron, 1e9);
  if (!Object.hasOwn(OPENABLE, state.open)) state.open = "";
  state.block = within(state.block, stacks.at(-1).blocks.length - 1);
  if (!Object.hasOwn(TABS, state.tab)) state.tab = "attention";
  const nearby = recording.temperatures.map((value) => Math.abs(value - Number(state.temperature)));
  state.temperature = recording.temperatures[nearby.indexOf(Math.min(...nearby))] ?? 1;
  state.k = within(state.k, recording.runs[0].next.ids.shape[1]);
  if (!["answer", "token"].includes(state.effect)) state.effect = "answer";
  state.patchKind = within(state.patchKind, patchKinds().length - 1);
  if (state.from !== null) state.from = within(state.from, 1e6);
  if (state.tour !== "") state.tour = within(state.tour - 1, tourStops.length - 1) + 1;
}

// A page inside of a notebook is a frame without an address: writing one would throw.
const hasAddress = location.protocol !== "about:";

function writeAddress() {
  if (!hasAddress) return;
  const address = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name !== "combine" && value !== "" && value !== null) address.set(name, value);
  }
  if (chosenTheme) address.set("theme", chosenTheme);
  if (live) {
    address.set("text", recording.text);
    if (content.other) address.set("other", content.other.text);
  }
  history.replaceState(null, "", `#${address}`);
}

/** Apply the state in the URL. In a live page the URL may name other texts, which are then recorded. */
async function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  if (live && address.has("text")) {
    const other = address.get("other") ?? content.other?.text ?? "";
    if (address.get("text") !== recording.text || other !== (content.other?.text ?? "")) {
      await record(address.get("text"), other, recording.search);
    }
  }
  if (address.has("tour")) await openStop(address.get("tour"));
  else resetState();
  for (const name of Object.keys(state)) if (address.has(name)) state[name] = address.get(name);
  if (["light", "dark"].includes(address.get("theme"))) chosenTheme = address.get("theme");
  setTheme();
  clampState();
  render();
}

let chosenTheme = null; // null: the system's
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme() {
  const { classList } = document.documentElement;
  const dark = chosenTheme ? chosenTheme === "dark" : systemIsDark.matches;
  const theme = dark && !classList.contains("printing") ? "dark" : "light";
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colors`);
  const style = getComputedStyle(document.documentElement);
  for (const name of Object.keys(themeColors)) themeColors[name] = style.getPropertyValue(`--${name}`).trim();
  imageCache.clear();
}

/** The theme's colors for canvases, cached since getComputedStyle forces layout. */
const themeColors = { text: "", soft: "", sunk: "", self: "", cross: "" };

/** Render all views in the next frame, once. */
function render() {
  render.frame ??= requestAnimationFrame(() => {
    render.frame = null;
    renderNow();
  });
}

function renderNow() {
  renderText();
  renderNetwork();
  renderPanel();
  renderTour();
}

/** Lay the page out for paper, in light colors, with wide tables and maps scaled to the page; or as before. */
function setPrinting(isPrinting) {
  document.documentElement.classList.toggle("printing", isPrinting);
  setTheme();
  renderNow();
  drawCrossAttention();
  for (const scroller of document.querySelectorAll(".scroller")) {
    scroller.style.removeProperty("--print-zoom");
    scroller.style.setProperty("--print-zoom", Math.min(1, scroller.clientWidth / scroller.scrollWidth));
  }
}
