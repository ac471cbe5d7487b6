/* What a live page asks its server. */

const outcomes = new Map(); // the words of changes -> what came of them, or null while it is being computed

/** Ask the server. What it says against it is shown at the top of the page. */
async function ask(path, question) {
  byId("error").hidden = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
    });
    const said = await response.json();
    if (!response.ok) throw new Error(said.error);
    await unpackAll(said);
    Object.assign(texts, said.pieces);
    return said;
  } catch (error) {
    showError(
      error instanceof TypeError
        ? "The server does not answer. Is python -m ftcore.explore still running?"
        : error.message,
    );
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
  text: recording.text,
  ids: recording.runs[0].ids,
  other: content.other?.text ?? null,
  max_new_tokens: recording.search.max_new_tokens,
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
          next: (step) =>
            Array.from(rowOf(said.next_ids, step), (id, rank) => [
              id,
              Math.exp(rowOf(said.next_log_probabilities, step)[rank]),
            ]),
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
  await record(recording.text, content.other?.text ?? "", {
    ...recording.search,
    temperature,
    top_k: k,
    seed: recording.search.seed + 1,
  });
  look({ run: recording.runs.findIndex((one) => one.name === "sampling"), at });
}

/** The form of a live page, or what a recorded one says in its place. */
function buildAsk() {
  const root = byId("ask");
  if (!live) return;
  const field = (name, says, value, step) =>
    element("label", {}, says, element("input", { type: "number", name, value, step, required: true }));
  const { max_new_tokens, num_beams, temperature, top_k, seed } = recording.search;
  const form = element(
    "form",
    {},
    element(
      "label",
      { class: "wide" },
      "Text",
      element("textarea", { name: "text", dir: "auto", spellcheck: "false" }, recording.text),
    ),
    element(
      "label",
      { class: "wide" },
      "Second text, to patch from",
      element("textarea", { name: "other", dir: "auto", spellcheck: "false" }, content.other?.text ?? ""),
    ),
    element(
      "div",
      { class: "fields" },
      field("max_new_tokens", "new tokens", max_new_tokens, 1),
      field("num_beams", "beams", num_beams, 1),
      field("temperature", "temperature", temperature, 0.1),
      field("top_k", "top-k", top_k, 1),
      field("seed", "seed", seed, 1),
      element("button", { class: "first" }, "Run"),
    ),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    stop();
    const data = new FormData(form);
    const search = Object.fromEntries(
      ["max_new_tokens", "num_beams", "temperature", "top_k", "seed"].map((name) => [
        name,
        Number(data.get(name)),
      ]),
    );
    await record(data.get("text"), data.get("other"), search);
  });
  root.replaceChildren(
    element(
      "details",
      { open: buildAsk.open ?? false, toggle: (event) => (buildAsk.open = event.target.open) },
      element("summary", {}, "Other texts and settings"),
      form,
    ),
  );
}
