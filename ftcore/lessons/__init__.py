"""The course: fourteen steps from an empty file to T5 and GPT-2, each checked against ftcore.

Its modules:

    step.py       what a check is made of: `same`, `same_module`, `Wrong`
    steps.py      the steps, in order; their checks are in *_steps.py
    final.py      compares both models with transformers' at the end
    templates/    the files that a student starts with
    runner.py     runs the checks in a child process
    child.py      that process: imports the student's files, finds the line of an error or an endless loop
    board.py      what is printed
"""
