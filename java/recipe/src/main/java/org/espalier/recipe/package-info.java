/**
 * Recipes: one YAML file says what is done to a model, and a run does it, keeps checkpoints and writes
 * what came of it. {@link org.espalier.recipe.RecipeSchema} is the list of all keys; {@link
 * org.espalier.recipe.RecipeRun} carries a {@link org.espalier.recipe.Recipe} out through {@code
 * org.espalier.train}.
 */
package org.espalier.recipe;
