package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeRun;
import org.espalier.recipe.RunMonitor;
import org.espalier.source.ModelSource;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Checks a recipe without running it. */
@Command(
    name = "check",
    description = {
      "Checks RECIPE as 'compress' would: its keys, its files, and whether the model can be"
          + " trained. Nothing is written."
    },
    footer = {"", "Examples:", "  espalier recipe check recipe.yaml --set quantize.steps=50"})
final class RecipeCheck implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Parameters(paramLabel = "RECIPE", description = "The recipe, a YAML file.")
  private String file;

  @Option(
      names = "--set",
      paramLabel = "KEY=VALUE",
      description = "Change a key of the recipe, as stage.key=value or section.key=value.")
  private List<String> set = new ArrayList<>();

  @Option(names = "--keys-only", description = "Leave files alone: check keys and values.")
  private boolean keysOnly;

  @Override
  public Integer call() {
    Machine.threads();
    Machine.isa();
    Path path = ModelSource.path(file);
    Recipe recipe = Recipe.read(path, set);
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("recipe", file);
    Table table = new Table("", "");
    table.add("recipe", file + " is right");
    if (!keysOnly) {
      RunMonitor monitor = new CommandMonitor(common::note);
      RecipeRun.check(recipe, path.toAbsolutePath().getParent(), monitor)
          .forEach(
              (name, value) -> {
                json.putPOJO(name, value);
                table.add(name.replace('_', ' '), String.valueOf(value));
              });
    }
    if (common.json()) {
      common.print(json);
    } else {
      table.print(common.out());
    }
    return 0;
  }
}
