package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.concurrent.Callable;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Parameters;

/** Makes an earlier version current. */
@Command(
    name = "rollback",
    description = {
      "Makes VERSION current, or without VERSION the one that was current before; called again, the"
          + " one before that.",
      "",
      "The version is verified first. Nothing is removed: a rollback to the newer version undoes a"
          + " rollback."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store rollback --store models/",
      "  espalier store rollback 12 --store models/",
    })
final class StoreRollback implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;
  @Mixin private StoreOptions.Wait wait;

  @Parameters(paramLabel = "VERSION", arity = "0..1", description = "A number of 'list'.")
  private String given;

  @Override
  public Integer call() {
    ModelStore store = options.open();
    long before;
    long now;
    try (StoreWriter writer = wait.writer(store)) {
      before = store.current().orElse(0);
      if (given == null) {
        now = writer.rollback();
      } else {
        now = StoreOptions.version(store, given);
        writer.rollback(now);
      }
    }
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      common.print(
          json.put("before", before == 0 ? null : Long.valueOf(before)).put("current", now));
    } else {
      common
          .out()
          .println(
              "version "
                  + now
                  + " is current"
                  + (before == now ? ", as before" : before == 0 ? "" : "; it was " + before));
    }
    return 0;
  }
}
