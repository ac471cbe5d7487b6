/* Requests of a live page to its server. */

const outcomes = new Map(); // by encoded interventions; null while a request is running

/** Post JSON; an error is shown at the top of the page and gives null. */
async function post(path, request) {
  byId("error").hidden = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
    });
    const data = await response.json();
    if (!response.ok) throw new Error(data.error);
    await unpackAll(data);
    Object.assign(tokenTexts, data.pieces);
    return data;
  } catch (error) {
    showError(
      error instanceof TypeError
        ? "The server does not respond. Is python -m ftcore.explore still running?"
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

const answerRequest = () => ({
  text: recording.text,
  ids: recording.runs[0].ids,
  other: content.other?.text ?? null,
  max_new_tokens: recording.search.max_new_tokens,
});

async function record(text, other, search) {
  const second = other ? await post("other", { text: other, max_new_tokens: search.max_new_tokens }) : null;
  if (other && !second) return;
  const recorded = await post("record", { text, search });
  if (!recorded) return;
  const sameText = recorded.text === recording.text;
  recording = recorded;
  content.other = second;
  delete content.head_ablations;
  delete content.activation_patches;
  outcomes.clear();
  showRecording(sameText);
  setState({}); // updates the URL
}

/** The outcome if known; otherwise null, after requesting it for a later render. */
function requestOutcome(interventions) {
  const key = interventions.join(";");
  if (!outcomes.has(key)) {
    outcomes.set(key, null);
    post("outcome", { ...answerRequest(), interventions: interventions.map(parseIntervention) }).then(
      (data) => {
        if (data) {
          outcomes.set(key, toOutcome(data.ids, data));
          render();
        }
      },
    );
  }
  return outcomes.get(key);
}

/** Request a sweep, once for each recording; the panel is rebuilt with it. */
async function runSweep(name, path) {
  const { id } = recording;
  if (runSweep[name] === id) return;
  runSweep[name] = id;
  const sweep = await post(path, answerRequest());
  if (!sweep || recording.id !== id) return;
  content[name] = sweep;
  render();
}

async function sampleAgain() {
  const { temperature, k, at } = state;
  await record(recording.text, content.other?.text ?? "", {
    ...recording.search,
    temperature,
    top_k: k,
    seed: recording.search.seed + 1,
  });
  setState({ run: recording.runs.findIndex((each) => each.name === "sampling"), at });
}

/** The form of a live page: texts and search settings. */
function buildForm() {
  const root = byId("form");
  if (!live) return;
  const field = (name, text, value, step) =>
    element("label", {}, text, element("input", { type: "number", name, value, step, required: true }));
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
      "Second text, to patch activations from",
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
      element("button", { class: "primary" }, "Run"),
    ),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    stopPlaying();
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
      { open: buildForm.open ?? false, toggle: (event) => (buildForm.open = event.target.open) },
      element("summary", {}, "Other texts and settings"),
      form,
    ),
  );
}
