"""How a person answers: studies, the people in them, what they are shown and what they say.

Everything that imports FastAPI or SQLAlchemy is in here; `docs/design/labelling-service.md` is the plan of the house.
"""
