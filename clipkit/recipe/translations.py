"""Recipe section `translations`: the teacher of a text tower that learns a new language."""

from pydantic import Field

from clipkit.recipe.section import Section


class TranslationsRecipe(Section):
    """Settings of the objective `translations`, which trains a text tower to match a teacher."""

    teacher: str = Field(min_length=1)
    """Model whose text features of the captions are the target; any value that model.name accepts."""
