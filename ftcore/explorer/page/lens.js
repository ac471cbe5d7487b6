/* The logit lens panel. */

const MOST_COLUMNS = 24;

panels.lens = {
  key: () => "",
  build(root) {
    root.className = "";
    this.table = element("table", { class: "lens" });
    this.body = element("tbody");
    this.caption = element("caption");
    appendAll(
      root,
      headLine("lens", element("h3", {}, "Logit lens")),
      sentence(
        "The most likely next token if the model ended after that block; the top row is its prediction. ",
        "Framed: the chosen token. Color: the probability.",
      ),
      element("div", { class: "scroller", id: "lens-grid" }, this.table),
      element(
        "table",
        { class: "bars" },
        this.caption,
        tableHead("rank", "token", "probability", ""),
        this.body,
      ),
      pythonDetails(
        isT5
          ? `${pythonSetup()}lens = logit_lens(model, source, decoder_input_ids=target)  # (blocks, B, T, V)`
          : `${pythonSetup()}lens = logit_lens(model, ids)  # (blocks, B, T, V)`,
      ),
    );
    rovingTabIndex(this.table);
  },
  update() {
    const shown = windowAround(positions(), state.at, MOST_COLUMNS);
    const blocks = stacks
      .at(-1)
      .blocks.map((_, block) => block)
      .reverse();
    replaceContent(
      this.table,
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col" }, "input"),
          ...shown.map((at) => element("th", { scope: "col" }, tokenSpan(runTokens()[at]))),
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
            ...shown.map((at) => {
              const [[id, probability]] = lensAt(block, at);
              const kind = `${id === run().ids[at + 1] ? "right" : ""} ${at === state.at ? "here" : ""}`;
              return element(
                "td",
                { class: kind },
                button(
                  {
                    "data-key": `${block} ${at}`,
                    dir: "auto",
                    click: () => setState({ block, at }),
                    style: { "--weight": probability.toFixed(3) },
                    title: `${truncate(piece(id), 200)}: ${percent(probability)}`,
                    "aria-label":
                      `Block ${block}, position ${at}: ${truncate(piece(id), 60)}, ` + percent(probability),
                    "aria-pressed": String(block === state.block && at === state.at),
                  },
                  label(id, 20),
                ),
              );
            }),
          ),
        ),
      ),
    );
    resetTabStop(this.table);
    const here = `${quote(runTokens()[state.at])} (position ${state.at})`;
    this.caption.textContent = `After block ${state.block}, at ${here}`;
    replaceContent(
      this.body,
      ...lensAt(state.block, state.at).map(([id, probability], rank) =>
        panels.next.row(rank, id, probability, null, id === run().ids[state.at + 1]),
      ),
    );
  },
};
