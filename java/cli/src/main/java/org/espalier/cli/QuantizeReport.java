package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.espalier.compress.onnx.OutputError;
import org.espalier.format.Quantity;

/**
 * What {@code quantize} did.
 *
 * @param quantized the tensors that have another form now
 * @param wide those of them that a wanted size gives 8 bits; empty where none was wanted
 * @param skipped those that stay float, with the reason
 * @param made how far outputs are from what they were, where examples tell it
 * @param inputBytes of the model
 * @param outputBytes of what was written
 * @param speedup the original's time divided by the result's; NaN where nothing was timed
 */
record QuantizeReport(
    List<String> quantized,
    Optional<List<String>> wide,
    Map<String, String> skipped,
    Optional<OutputError.Made> made,
    long inputBytes,
    long outputBytes,
    double speedup,
    double seconds) {
  /** Of safetensors, which nothing runs. */
  static QuantizeReport ofCheckpoint(
      List<String> quantized,
      Map<String, String> skipped,
      long inputBytes,
      long outputBytes,
      double seconds) {
    return new QuantizeReport(
        quantized,
        Optional.empty(),
        skipped,
        Optional.empty(),
        inputBytes,
        outputBytes,
        Double.NaN,
        seconds);
  }

  /** Prints it as a table, or as JSON where that is wanted. */
  void print(CommonOptions common, String form, String output) {
    if (common.json()) {
      common.print(toJson(form, output));
      return;
    }
    Table table = new Table("", "");
    table.add("quantized", quantized.size() + " tensors to " + form);
    wide.ifPresent(w -> table.add("8 bits", w.size() + " of them, whose 4 bits would cost most"));
    table.add("float", skipped.size() + " that could have been");
    made.ifPresent(m -> table.add("error", m.text() + " on calibration examples"));
    table.add("size", Format.sizes(outputBytes, inputBytes));
    if (!Double.isNaN(speedup)) {
      table.add("speed", Format.speedup(speedup));
    }
    table.add("time", Quantity.seconds(seconds));
    table.print(common.out());
  }

  private ObjectNode toJson(String form, String output) {
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("to", form).put("output", output);
    json.put("input_bytes", inputBytes).put("output_bytes", outputBytes);
    json.put("size_ratio", inputBytes == 0 ? 1 : (double) outputBytes / inputBytes);
    json.put("seconds", seconds);
    made.ifPresent(m -> json.put("error", m.largest()));
    if (!Double.isNaN(speedup)) {
      json.put("speedup", speedup);
    }
    ArrayNode list = json.putArray("quantized");
    quantized.forEach(list::add);
    wide.ifPresent(w -> w.forEach(json.putArray("of_8_bits")::add));
    ObjectNode left = json.putObject("float");
    skipped.forEach(left::put);
    return json;
  }
}
