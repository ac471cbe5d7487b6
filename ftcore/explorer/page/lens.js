/* The panel of the logit lens. */

const MOST_COLUMNS = 24;

panels.lens = {
  key: () => "",
  build(root) {
    root.className = "";
    this.table = element("table", { class: "lens" });
    this.body = element("tbody");
    this.caption = element("caption");
    fill(
      root,
      element("h3", {}, "Logit lens"),
      element(
        "p",
        { class: "soft" },
        "What the model would say if it stopped after a block: ",
        "the residual stream there, read by its final norm and head. ",
        "The top row is what it does say. A frame: the token that was written. Colour: the probability.",
      ),
      element("div", { class: "scroller", id: "lens-grid" }, this.table),
      element(
        "table",
        { class: "bars" },
        this.caption,
        tableHead("rank", "token", "probability", ""),
        this.body,
      ),
      inPython(
        isT5
          ? `${pythonInput()}lens = logit_lens(model, source, decoder_input_ids=target)  # (blocks, B, T, V)`
          : `${pythonInput()}lens = logit_lens(model, ids)  # (blocks, B, T, V)`,
      ),
    );
    roving(this.table);
  },
  update() {
    const around = windowOf(positions(), state.at, MOST_COLUMNS);
    const blocks = stacks
      .at(-1)
      .blocks.map((_, block) => block)
      .reverse();
    refill(
      this.table,
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col" }, "reads"),
          ...around.map((at) => element("th", { scope: "col" }, token(run().ids[at]))),
        ),
      ),
      element(
        "tbody",
        {},
        ...blocks.map((block) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, `block ${block}`),
            ...around.map((at) => {
              const [[id, probability]] = lensOf(block, at);
              const kind = `${id === run().ids[at + 1] ? "right" : ""} ${at === state.at ? "here" : ""}`;
              return element(
                "td",
                { class: kind },
                button(
                  {
                    "data-key": `${block} ${at}`,
                    dir: "auto",
                    click: () => look({ block, at }),
                    style: { "--weight": probability.toFixed(3) },
                    title: `${short(piece(id), 200)}: ${percent(probability)}`,
                    "aria-label":
                      `Block ${block}, position ${at}: ${short(piece(id), 60)}, ` + percent(probability),
                    "aria-pressed": block === state.block && at === state.at,
                  },
                  marked(id, 20),
                ),
              );
            }),
          ),
        ),
      ),
    );
    tabStop(this.table);
    const here = `${quoted(run().ids[state.at])} (position ${state.at})`;
    this.caption.textContent = `After block ${state.block}, at ${here}`;
    refill(
      this.body,
      ...lensOf(state.block, state.at).map(([id, probability], rank) =>
        panels.next.row(rank, id, probability, null, id === run().ids[state.at + 1]),
      ),
    );
  },
};
