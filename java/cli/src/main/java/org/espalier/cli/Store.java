package org.espalier.cli;

import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** The commands of a folder of versions. */
@Command(
    name = "store",
    synopsisSubcommandLabel = "COMMAND",
    subcommands = {
      StoreList.class,
      StoreShow.class,
      StorePublish.class,
      StoreRollback.class,
      StorePin.class,
      StoreVerify.class,
      StoreGc.class,
      StoreDiff.class,
      StoreExport.class
    },
    description = {
      "Keeps versions of a model in a folder: published whole or not at all, with the SHA-256 of"
          + " each file, with where they come from, signed where wanted.",
      "",
      "One version is current: readers take it. One process writes at a time, any number read, and"
          + " a process that is killed leaves a store that works. 'publish' makes a store where"
          + " there is none."
    },
    footer = {
      "",
      "A store that is read with --trust refuses versions that the key did not sign, or that were"
          + " altered since, and publishes none. The keys are Ed25519:",
      "  openssl genpkey -algorithm ed25519 -out key.pem",
      "  openssl pkey -in key.pem -pubout -out public.pem",
      "",
      "Examples:",
      "  espalier store publish model.onnx --store models/ --note 'int8, June data'",
      "  espalier store list --store models/ --json",
      "  espalier store rollback --store models/",
      "  espalier store gc --store models/ --keep 10 --older-than 30d",
    })
final class Store implements Runnable {
  @Spec private CommandSpec spec;
  @Mixin private CommonOptions common;

  @Override
  public void run() {
    throw new ParameterException(
        spec.commandLine(),
        "a command is missing: list, show, publish, rollback, pin, verify, gc, diff or export");
  }
}
