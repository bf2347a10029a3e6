package org.espalier.cli;

import java.util.concurrent.Callable;
import org.espalier.recipe.RecipeSchema;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

/** Lists all keys of a recipe. */
@Command(
    name = "schema",
    description = {
      "Lists all keys of a recipe with what they take and what stands by default.",
      "",
      "--json prints a JSON Schema (draft 2020-12), with which editors complete and check recipes."
    })
final class RecipeSchemaCommand implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Override
  public Integer call() {
    if (common.json()) {
      common.print(RecipeSchema.toJsonSchema());
    } else {
      common.out().print(RecipeSchema.describe());
    }
    return 0;
  }
}
