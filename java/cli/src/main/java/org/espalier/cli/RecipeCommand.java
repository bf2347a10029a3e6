package org.espalier.cli;

import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** Helps with the writing of recipes. */
@Command(
    name = "recipe",
    description = "Helps with the recipes that 'espalier compress' carries out.",
    synopsisSubcommandLabel = "COMMAND",
    subcommands = {RecipeSchemaCommand.class, RecipeCheck.class, RecipeInit.class},
    footer = {
      "",
      "Examples:",
      "  espalier recipe init -o recipe.yaml --model model.onnx --texts texts.txt",
      "  espalier recipe check recipe.yaml",
      "  espalier recipe schema",
    })
final class RecipeCommand implements Runnable {
  @Spec private CommandSpec spec;
  @Mixin private CommonOptions common;

  @Override
  public void run() {
    throw new ParameterException(spec.commandLine(), "a command is missing");
  }
}
