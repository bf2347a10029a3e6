package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.format.Quantity;
import org.espalier.store.ModelDiff;
import org.espalier.store.ModelDiff.Change;
import org.espalier.store.ModelDiff.Layer;
import org.espalier.store.ModelStore;
import org.espalier.torch.TorchScriptModel;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Compares two versions. */
@Command(
    name = "diff",
    description = {
      "Says how two versions differ, layer by layer: how many values changed, the largest change,"
          + " and the norm of the change relative to the norm of the layer.",
      "",
      "Both are verified first. Of TorchScript the parameters are compared, and whether all else is"
          + " the same."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store diff 3 current --store models/",
      "  espalier store diff 3 4 --store models/ --all --json",
    })
final class StoreDiff implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;

  @Parameters(index = "0", paramLabel = "FROM", description = "A number of 'list', or 'current'.")
  private String from;

  @Parameters(index = "1", paramLabel = "TO", description = "A number of 'list', or 'current'.")
  private String to;

  @Option(names = "--all", description = "List the layers that are the same too.")
  private boolean all;

  @Override
  public Integer call() {
    ModelStore store = options.open();
    ModelDiff diff;
    long before = StoreOptions.version(store, from);
    long after = StoreOptions.version(store, to);
    boolean script;
    try (Progress progress = new Progress(common.err(), "comparing");
        ModelStore.Held first = store.hold(before);
        ModelStore.Held second = store.hold(after)) {
      progress.update("comparing", 0, 0);
      script = isScript(first.model());
      if (script != isScript(second.model())) {
        throw new InputException(
            "versions " + before + " and " + after + " are of different formats");
      }
      diff =
          script
              ? TorchScriptModel.diff(first.model(), second.model())
              : ModelDiff.of(first.model(), second.model());
    }
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("from", before).put("to", after).put("same", diff.isEmpty());
    ArrayNode operators = json.putArray("operators");
    diff.operators().forEach(operators::add);
    ArrayNode layers = json.putArray("layers");
    Table table =
        new Table("LAYER", "TYPE", "CHANGE", ">CHANGED", ">LARGEST", ">RELATIVE", ">ZEROS");
    int same = 0;
    for (Layer layer : diff.layers()) {
      if (layer.change() == Change.SAME && !all) {
        same++;
        continue;
      }
      write(layer, layers.addObject());
      add(layer, table);
    }
    if (common.json()) {
      common.print(json);
      return 0;
    }
    if (!layers.isEmpty()) {
      table.print(common.out());
    }
    diff.operators().forEach(line -> common.out().println((script ? "" : "operator ") + line));
    if (same > 0) {
      common.out().println(same + " layers are the same");
    }
    return 0;
  }

  private static void write(Layer layer, ObjectNode item) {
    item.put("name", layer.name()).put("change", layer.change().name().toLowerCase(Locale.ROOT));
    item.put("before", layer.before()).put("after", layer.after());
    item.put("elements", layer.elements()).put("changed", layer.changed());
    item.set("largest", Json.of(layer.largest()));
    item.set("relative", Json.of(layer.relative()));
    if (layer.zerosBefore() >= 0) {
      item.put("zeros_before", layer.zerosBefore()).put("zeros_after", layer.zerosAfter());
    }
  }

  private static void add(Layer layer, Table table) {
    boolean compared = layer.change() == Change.VALUES || layer.change() == Change.SAME;
    double n = Math.max(1, layer.elements());
    table.add(
        layer.name(),
        type(layer),
        layer.change().name().toLowerCase(Locale.ROOT),
        compared ? Quantity.percent(layer.changed() / n) : "",
        compared ? number(layer.largest()) : "",
        compared ? number(layer.relative()) : "",
        compared && layer.zerosBefore() >= 0
            ? Quantity.percent(layer.zerosBefore() / n)
                + " -> "
                + Quantity.percent(layer.zerosAfter() / n)
            : "");
  }

  private static boolean isScript(Path model) {
    return model.toString().endsWith(".pt");
  }

  private static String type(Layer layer) {
    if (layer.before() == null || layer.after() == null || layer.before().equals(layer.after())) {
      return layer.before() == null ? layer.after() : layer.before();
    }
    return layer.before() + " -> " + layer.after();
  }

  private static String number(double value) {
    return Double.isNaN(value) ? "" : String.format(Locale.ROOT, "%.3g", value);
  }
}
