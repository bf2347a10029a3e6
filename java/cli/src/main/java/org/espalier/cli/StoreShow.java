package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.concurrent.Callable;
import org.espalier.format.Quantity;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.Version;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Parameters;

/** Shows one version. */
@Command(
    name = "show",
    description = "Shows a version: its files with their SHA-256, and where it comes from.",
    footer = {
      "",
      "Examples:",
      "  espalier store show --store models/",
      "  espalier store show 7 --store models/ --json | jq -r .recipe",
    })
final class StoreShow implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;

  @Parameters(
      paramLabel = "VERSION",
      arity = "0..1",
      description = "Its number. Default: the current one.")
  private String given = "current";

  @Override
  public Integer call() {
    ModelStore store = options.open();
    Version version = store.version(StoreOptions.version(store, given));
    boolean current = store.current().orElse(0) == version.id();
    boolean pinned = store.pinned().contains(version.id());
    if (common.json()) {
      ObjectNode json = StoreJson.of(version).put("current", current).put("pinned", pinned);
      common.print(json);
      return 0;
    }
    Lineage lineage = version.lineage();
    Table table = new Table("", "");
    table.add(
        "version",
        version.id()
            + (current ? ", current" : "")
            + (pinned ? ", pinned" : "")
            + (version.signed() ? ", signed" : ""));
    table.add("created", version.created().toString());
    table.add("model", version.model().isEmpty() ? "the whole folder" : version.model());
    row(table, "parent", lineage.parent());
    row(table, "source", lineage.source());
    row(table, "note", lineage.note());
    if (lineage.data() != null) {
      Lineage.DataWindow data = lineage.data();
      table.add(
          "data",
          (data.source() == null ? "" : data.source() + ", ")
              + "examples "
              + data.from()
              + " to "
              + (data.to() - 1));
    }
    row(table, "epsilon", lineage.epsilon());
    lineage.metrics().forEach((name, value) -> row(table, name, value));
    table.print(common.out());
    common.out().println();
    Table files = new Table("FILE", ">SIZE", "SHA-256");
    version.files().forEach(f -> files.add(f.path(), Quantity.bytes(f.bytes()), f.sha256()));
    files.print(common.out());
    if (lineage.recipe() != null) {
      common.out().println();
      lineage
          .recipe()
          .stripTrailing()
          .lines()
          .map(line -> Table.visible(line.replace("\t", "    ")))
          .forEach(common.out()::println);
    }
    return 0;
  }

  private static void row(Table table, String name, Object value) {
    if (value != null) {
      table.add(name, value.toString());
    }
  }
}
