/* The tabs and their panels. A panel is rebuilt when its `key()` changes, and updated on every render. */

const panels = {}; // by tab: { key(), build(root), update() }

function buildTabs() {
  byId("tabs").replaceChildren(
    ...Object.entries(TABS).map(([tab, name]) =>
      button(
        { role: "tab", id: `tab-${tab}`, "aria-controls": "panel", click: () => setState({ tab }) },
        name,
      ),
    ),
  );
  byId("tabs").addEventListener("keydown", (event) => {
    const names = Object.keys(TABS);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const tab = names[(names.indexOf(state.tab) + step + names.length) % names.length];
    setState({ tab });
    byId(`tab-${tab}`).focus();
  });
}

function renderPanel() {
  for (const tab of Object.keys(TABS)) {
    const node = byId(`tab-${tab}`);
    node.setAttribute("aria-selected", tab === state.tab);
    node.tabIndex = tab === state.tab ? 0 : -1;
  }
  const panel = panels[state.tab];
  const key = `${recording.id} ${state.tab} ${panel.key()}`;
  const root = byId("panel");
  root.setAttribute("aria-labelledby", `tab-${state.tab}`);
  if (renderPanel.key !== key) {
    renderPanel.key = key;
    replaceContent(root);
    panel.build(root);
  }
  panel.update();
}

/** Code that gets the same numbers in Python. */
const pythonDetails = (code) =>
  element("details", {}, element("summary", {}, "The same in Python"), element("pre", { tabindex: 0 }, code));

function pythonSetup() {
  const name = JSON.stringify(model.name);
  const load = `model, tokenizer = load_model(${name}), load_tokenizer(${name})`;
  const encoded = `torch.tensor([tokenizer.encode(${JSON.stringify(recording.text)})])`;
  const ids = run().ids.slice(0, -1).join(", ");
  return isT5
    ? `${load}\nsource = ${encoded}\ntarget = torch.tensor([[${ids}]])\n`
    : `${load}\nids = ${encoded}\n`;
}

/** Code that records an activation. */
function pythonRecord(name, then) {
  const call = isT5 ? "model(source, decoder_input_ids=target)" : "model(ids)";
  return pythonDetails(
    `${pythonSetup()}with record(model, "${name}") as acts:\n    ${call}\nacts["${name}"]${then}`,
  );
}
