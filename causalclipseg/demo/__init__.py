"""The pages of the web demo, which `app.py` serves: no model code here, only questions to it and what is shown.

    engine.py     the loaded models, and the questions that the page asks them
    words.py      answers in words: the written equivalent of every picture
    pictures.py   answers in pictures
    views.py      what each component shows of an answer
    page.py       the page: inputs and tabs
    events.py     what happens when something is pressed
    endpoints.py  /segment, /intervene, /explain for programs
    tour.py       the guided tour and the examples of each tab
    space.py      the files of a Hugging Face Space
"""
