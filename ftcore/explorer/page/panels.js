/* The panels' tabs. Each panel says what it was built for (`key`), is built anew when that changes, and is
   updated after every change of the state. */

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
const inPython = (code) =>
  element("details", {}, element("summary", {}, "The same in Python"), element("pre", { tabindex: 0 }, code));

function pythonInput() {
  const name = JSON.stringify(model.name);
  const load = `model, tokenizer = load_model(${name}), load_tokenizer(${name})`;
  const encoded = `torch.tensor([tokenizer.encode(${JSON.stringify(recording.text)})])`;
  const ids = run().ids.slice(0, -1).join(", ");
  return isT5
    ? `${load}\nsource = ${encoded}\ntarget = torch.tensor([[${ids}]])\n`
    : `${load}\nids = ${encoded}\n`;
}

/** An activation, and what to do with it. */
function recordInPython(name, then) {
  const call = isT5 ? "model(source, decoder_input_ids=target)" : "model(ids)";
  return inPython(
    `${pythonInput()}with record(model, "${name}") as acts:\n    ${call}\nacts["${name}"]${then}`,
  );
}
