"""The page that shows what a checkpoint computes on a text: `python -m ftcore.explore`.

`recorder.py` says what is recorded, by `ftcore.study.record`; `interventions.py` what is changed, by `patch`.
`structure.py` lists the parts of the network that the page draws, `tokens.py` makes tokens visible, and
`packing.py` makes arrays small. `page.py` puts all that and what lies in `page/` into one file; `server.py`
hands the page out and computes for it.
"""
