package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.store.ModelStore;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Parameters;

/** Checks the files of versions. */
@Command(
    name = "verify",
    description = {
      "Reads every file of all versions, or of one, and compares names, lengths and SHA-256 with"
          + " what was published; with --trust the signatures too.",
      "",
      "Exit code 2 where anything differs."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store verify --store models/",
      "  espalier store verify current --store models/ --trust public.pem",
    })
final class StoreVerify implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;

  @Parameters(
      paramLabel = "VERSION",
      arity = "0..1",
      description = "A number of 'list', or 'current'. Default: all.")
  private String given;

  @Override
  public Integer call() {
    ModelStore store = options.open();
    List<Long> ids = given == null ? store.ids() : List.of(StoreOptions.version(store, given));
    if (given != null && !store.ids().contains(ids.get(0))) {
      store.version(ids.get(0)); // says which there are
    }
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    ArrayNode versions = json.putArray("versions");
    int bad = 0;
    for (long id : ids) {
      List<String> problems = store.verify(id);
      bad += problems.isEmpty() ? 0 : 1;
      ArrayNode listed =
          versions.addObject().put("id", id).put("ok", problems.isEmpty()).putArray("problems");
      problems.forEach(listed::add);
      if (!common.json()) {
        common
            .out()
            .println(
                "version "
                    + id
                    + ": "
                    + (problems.isEmpty() ? "ok" : Table.visible(problems.get(0))));
        problems.stream().skip(1).forEach(p -> common.out().println("  " + Table.visible(p)));
      }
    }
    long current = store.current().orElse(0);
    boolean missing = given == null && current != 0 && !ids.contains(current);
    if (common.json()) {
      common.print(json.put("current_missing", missing).put("ok", bad == 0 && !missing));
    }
    if (missing) {
      throw new InputException(
          "the current version "
              + current
              + " is missing; 'rollback VERSION' makes another one current");
    }
    if (bad > 0) {
      throw new InputException(
          bad + " of " + ids.size() + " versions are not as they were published");
    }
    return 0;
  }
}
