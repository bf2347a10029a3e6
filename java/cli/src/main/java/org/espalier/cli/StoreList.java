package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.format.Quantity;
import org.espalier.store.ModelStore;
import org.espalier.store.Version;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

/** Lists the versions of a store. */
@Command(
    name = "list",
    description = {
      "Lists the versions of a store, oldest first. The current one has a star.",
      "",
      "The files themselves are not read; 'verify' does."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store list --store models/",
      "  espalier store list --store models/ --json | jq .current",
    })
final class StoreList implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;

  @Override
  public Integer call() {
    ModelStore store = options.open();
    long current = store.current().orElse(0);
    Set<Long> pinned = store.pinned();
    List<Long> ids = store.ids();
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("store", store.folder().toString());
    json.put("current", current == 0 ? null : Long.valueOf(current));
    ArrayNode versions = json.putArray("versions");
    Table table = new Table("", ">VERSION", "CREATED", ">PARENT", ">SIZE", "SIGNED", "NOTE");
    for (long id : ids) {
      String star = id == current ? "*" : "";
      try {
        Version version = store.version(id);
        versions.add(
            StoreJson.of(version).put("current", id == current).put("pinned", pinned.contains(id)));
        table.add(
            star,
            Long.toString(id),
            version.created().toString().replaceAll("\\.\\d+", ""),
            version.lineage().parent() == null ? "" : version.lineage().parent().toString(),
            Quantity.bytes(version.bytes()),
            version.signed() ? "yes" : "",
            note(version, pinned.contains(id)));
      } catch (InputException e) {
        versions
            .addObject()
            .put("id", id)
            .put("current", id == current)
            .put("problem", e.getMessage());
        table.add(star, Long.toString(id), "", "", "", "", e.getMessage());
      }
    }
    if (common.json()) {
      common.print(json);
    } else if (ids.isEmpty()) {
      common.out().println("no versions yet");
    } else {
      table.print(common.out());
    }
    return 0;
  }

  private static String note(Version version, boolean pinned) {
    String metrics =
        version.lineage().metrics().entrySet().stream()
            .map(e -> String.format(Locale.ROOT, "%s %.4g", e.getKey(), e.getValue()))
            .collect(Collectors.joining(", "));
    String note = version.lineage().note() == null ? "" : version.lineage().note();
    return List.of(pinned ? "pinned" : "", note, metrics).stream()
        .filter(s -> !s.isEmpty())
        .collect(Collectors.joining("; "));
  }
}
