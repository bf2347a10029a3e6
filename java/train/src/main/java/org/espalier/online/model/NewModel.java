package org.espalier.online.model;

import java.util.List;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineSettings;

/** The model that a recipe describes, where none is given. */
public final class NewModel {
  private NewModel() {}

  /**
   * A new model: linear and of zeros, or a perceptron whose weights the settings' seed draws.
   *
   * @throws org.espalier.InputException where the recipe does not say of what sizes
   */
  public static Learnable of(OnlineRecipe recipe) {
    int features = recipe.features();
    List<Integer> hidden = recipe.hidden();
    OnlineSettings settings = recipe.settings();
    return hidden.isEmpty()
        ? new LinearHead(features, recipe.outputs())
        : Perceptron.drawn(
            features,
            hidden,
            recipe.outputs(),
            recipe.activation(),
            settings.loss(),
            settings.seed());
  }
}
