/* Starting the page. */

/** Show a recording; `keep` the state if the text is the same. */
function showRecording(keep = false) {
  recording.id = showRecording.count = (showRecording.count ?? 0) + 1;
  imageCache.clear();
  buildTokens.of = null;
  const before = { ...state };
  resetState();
  if (keep) Object.assign(state, before);
  clampState();
  buildForm();
  buildText();
  render();
}

function buildFrame() {
  byId("model-name").textContent = model.name;
  const depth = stacks.map((stack) => stack.blocks.length).join(" + ");
  byId("model-facts").textContent =
    `${model.architecture} · ${model.parameters.toLocaleString("en")} parameters · ` +
    `${depth} blocks · ${model.heads} heads · width ${model.width}`;
  byId("mode").textContent = live ? "live" : "recorded, works offline";
  byId("footer").textContent =
    "Positions, blocks and heads are counted from 0, as in Python. " +
    "␣ is a leading space, ⏎ a new line, #12 a token id without text of its own. " +
    (live
      ? ""
      : "This page shows recorded data and runs no model. " +
        "For other texts and interventions: python -m ftcore.explore --serve.");
  byId("theme").addEventListener("click", () => {
    chosenTheme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme();
    setState({});
  });
  byId("copy-link").hidden = !hasAddress;
  byId("copy-link").addEventListener("click", async () => {
    writeAddress();
    try {
      await navigator.clipboard.writeText(location.href);
      byId("copy-link").textContent = "Copied";
    } catch {
      byId("copy-link").textContent = "See the address bar";
    }
    setTimeout(() => (byId("copy-link").textContent = "Copy link"), 1500);
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the URL hash holds the state
    byId("panels").focus();
  });
  byId("position").addEventListener("input", (event) => {
    stopPlaying();
    setState({ at: Number(event.target.value) });
  });
  byId("back").addEventListener("click", () => {
    stopPlaying();
    setState({ at: state.at - 1 });
  });
  byId("forward").addEventListener("click", () => {
    stopPlaying();
    setState({ at: state.at + 1 });
  });
  byId("play").addEventListener("click", play);
  systemIsDark.addEventListener("change", () => {
    setTheme();
    render();
  });
  addEventListener("beforeprint", () => setPrinting(true));
  addEventListener("afterprint", () => setPrinting(false));
  addEventListener("hashchange", readAddress);
  rovingTabIndex(byId("stacks"));
}

Object.assign(tokenTexts, content.pieces, content.other?.pieces, recording.pieces);
await unpackAll(content);
buildFrame();
buildHelp();
buildTour();
setTheme();
buildTabs();
buildNetwork();
showRecording();
await readAddress();
document.documentElement.dataset.ready = "true";
