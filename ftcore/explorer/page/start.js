/* The page begins. */

/** Show a recording; `keep` what the reader looks at, where the text is still the same. */
function begin(keep = false) {
  recording.id = begin.count = (begin.count ?? 0) + 1;
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
    `${model.architecture} · ${model.parameters.toLocaleString("en")} parameters · ` +
    `${depth} blocks · ${model.heads} heads · width ${model.width}`;
  byId("mode").textContent = live ? "live" : "recorded, works offline";
  byId("footer").textContent =
    "Positions, blocks and heads are counted from 0, as in Python. " +
    "␣ is a space before a token, ⏎ a new line, #12 a token that is no text by itself. " +
    (live
      ? ""
      : "This page cannot compute: it shows what was recorded. " +
        "For other texts and changes: python -m ftcore.explore --serve.");
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
