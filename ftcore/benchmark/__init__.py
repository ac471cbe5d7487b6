"""What ftcore costs beside transformers and CTranslate2.

Read `cases.py` for what is measured, `rounds.py` for how, and the sides for what each is made to do.
"""
