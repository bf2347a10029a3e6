package org.espalier.compress.onnx;

import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.espalier.compress.Progress;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;

/**
 * What the quantizers of ONNX models share: the model in float32, the weights that stay as they are, embedding tables of int8, and
 * how a rewritten model is finished. A subclass says which products and tables it quantizes, and writes their nodes.
 */
abstract sealed class OnnxQuantizer implements TrainableQuantizer
    permits BlockQuantizer, DynamicQuantizer, StaticQuantizer {
  final OnnxModel model;
  final OneUse use;
  final Map<String, String> skipped = new LinkedHashMap<>();
  Progress progress = Progress.NONE;

  /** Tables of int8 whose integers were trained, by their constants. */
  final Map<String, EmbeddingTables.Integers> trainedTables = new HashMap<>();

  /** Whether the model computed in 16 bits. */
  private final boolean half;

  /**
   * Gives the model float32 arithmetic and an operator set.
   *
   * @param opset the least version of ONNX's operators
   * @throws org.espalier.InputException if its operators cannot be raised to that version
   */
  OnnxQuantizer(OnnxModel model, long opset) {
    this.model = model;
    this.use = new OneUse(model, "was quantized");
    this.half = HalfPrecision.widen(model);
    OpsetUpgrade.raise(model, opset);
  }

  /** The names of the tables that no product reads, by the constants that hold them. */
  abstract Map<String, String> tableNames();

  /**
   * Replaces the nodes of products and look-ups.
   *
   * @param target the model, or a copy of it in which constants have other values
   */
  abstract void writeNodes(OnnxModel target);

  @Override
  public final Map<String, String> skipped() {
    return Collections.unmodifiableMap(skipped);
  }

  @Override
  public final void tell(Progress listener) {
    progress = listener;
  }

  @Override
  public List<QuantizedTable> tables() {
    use.check();
    return EmbeddingTables.nearest(model, tableNames());
  }

  @Override
  public void setTable(String table, byte[] integers, float[] scales) {
    trainedTables.put(table, EmbeddingTables.checked(model, tableNames(), table, integers, scales));
  }

  @Override
  public final OnnxModel quantizedCopy(Consumer<OnnxModel> change) {
    use.check();
    OnnxModel copy = model.copy();
    change.accept(copy);
    quantize(copy);
    return copy;
  }

  /** Quantizes the model in place; it can be done once. */
  final void quantizeModel() {
    use.check();
    use.begin();
    quantize(model);
  }

  private void quantize(OnnxModel target) {
    SumShapes sums = SumShapes.find(target);
    writeNodes(target);
    RuntimeForm.removeUnused(target);
    if (half) {
      HalfPrecision.narrow(target);
    } else {
      sums.apply(target);
    }
    target.check();
  }
}
