package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import java.util.concurrent.Callable;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Keeps a version from being collected. */
@Command(
    name = "pin",
    description = "Keeps a version from being removed by 'gc', until --remove.",
    footer = {
      "",
      "Examples:",
      "  espalier store pin 7 --store models/",
      "  espalier store pin 7 --remove --store models/",
    })
final class StorePin implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;
  @Mixin private StoreOptions.Wait wait;

  @Parameters(paramLabel = "VERSION", description = "A number of 'list', or 'current'.")
  private String given;

  @Option(names = "--remove", description = "The version may be collected again.")
  private boolean remove;

  @Override
  public Integer call() {
    ModelStore store = options.open();
    long id = StoreOptions.version(store, given);
    try (StoreWriter writer = wait.writer(store)) {
      writer.pin(id, !remove);
    }
    if (common.json()) {
      common.print(JsonNodeFactory.instance.objectNode().put("id", id).put("pinned", !remove));
    } else {
      common.out().println("version " + id + (remove ? " is not pinned" : " is pinned"));
    }
    return 0;
  }
}
