/* What the reader looks at. Every change goes through `look`, and the address keeps it. */

const TABS = {
  attention: "Attention",
  next: "Next token",
  lens: "Logit lens",
  beams: "Beams",
  change: "Change",
};
const state = {}; // what the reader looks at; every change goes through `look`
const hover = { side: null, at: null }; // where the pointer is, in the text

function firstState() {
  const stack = stacks.at(-1);
  const kind = isT5 ? "cross-attention" : "self-attention";
  const first = recording.runs[0];
  // Where the first word is written; sentinels, which stand for gaps, come before it.
  const word = first.ids.findIndex((id, place) => place >= first.prompt_length && !piece(id).startsWith("<"));
  const at = Math.max(word, first.prompt_length) - 1;
  Object.assign(state, {
    run: 0,
    at,
    src: 0,
    see: stack.blocks.at(-1).find((part) => part.kind === kind).writes,
    head: 0,
    tab: "attention",
    block: stack.blocks.length - 1,
    temperature: 1,
    k: 0,
    effect: "answer",
    changes: "",
    beam: "",
    kind: 0,
    from: null,
    combine: false,
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

/** Take over what the address says. In a live page it may name other texts, which are then recorded. */
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
