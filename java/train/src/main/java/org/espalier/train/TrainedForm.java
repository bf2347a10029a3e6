package org.espalier.train;

import java.util.List;
import org.espalier.InputException;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.compress.onnx.OpsetUpgrade;
import org.espalier.format.onnx.ActiveDropout;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * A model as training sees it: of float32, of operators that training knows, and where it is int8 of floats that lie on
 * its grids. Immutable and safe for several threads.
 */
public final class TrainedForm {
  /** The oldest operator set that is trained; older ones are raised. */
  private static final int OLDEST_OPSET = 11;

  private final OnnxModel given;
  private final OnnxModel floats;
  private final Int8Model integers;
  private final List<String> resting;

  private TrainedForm(OnnxModel given, OnnxModel floats, Int8Model integers, List<String> resting) {
    this.given = given;
    this.floats = floats;
    this.integers = integers;
    this.resting = resting;
  }

  /**
   * The form of a model, which stays as it is.
   *
   * @throws InputException where a tensor of it is too large, or it is int8 in a way that cannot be learned: see {@link
   *     Int8Model#of}
   */
  public static TrainedForm of(OnnxModel model) {
    requireTrainable(model);
    OnnxModel known = known(model);
    if (!Int8Model.is(known)) {
      return new TrainedForm(model, known, null, List.of());
    }
    Int8Model integers = Int8Model.of(known);
    boolean learned =
        integers.integers().values().stream().anyMatch(Int8Model.Integers::areOfBytes);
    return new TrainedForm(
        model, learned ? integers.floats() : known, learned ? integers : null, integers.resting());
  }

  /** The floats of a model that is only run: where it is int8 in a way that cannot be learned, it stays so. */
  static OnnxModel ofTeacher(OnnxModel model) {
    OnnxModel known = known(model);
    try {
      return Int8Model.is(known) ? Int8Model.of(known).floats() : known;
    } catch (InputException e) {
      return known;
    }
  }

  /** A view of Java's has less than 2 GiB, and weights of 16 bits are trained in 32. */
  private static void requireTrainable(OnnxModel model) {
    for (OnnxInitializer i : model.initializers()) {
      long bytes = HalfPrecision.isHalf(i.type()) ? 2 * i.byteLength() : i.byteLength();
      if (bytes > Integer.MAX_VALUE) {
        throw new InputException(
            model.name()
                + ": the tensor "
                + i.name()
                + " has "
                + bytes
                + " bytes where it is trained; the model may be of any size, but no tensor of it"
                + " may have 2 GiB");
      }
    }
  }

  /**
   * A copy with operators that training knows: those of sets before 11 are raised to set 13, what computes in 16
   * bits does so in 32, and Dropout nodes drop nothing, or no two runs would be equal.
   */
  private static OnnxModel known(OnnxModel model) {
    OnnxModel copy = model.copy();
    HalfPrecision.widenOutputsToo(copy);
    ActiveDropout.evaluate(copy);
    if (copy.opset("") < OLDEST_OPSET) {
      OpsetUpgrade.raise(copy, OpsetUpgrade.TARGET);
    }
    return copy;
  }

  /** Whether it is the form of this model, and not of another or of a copy. */
  boolean isOf(OnnxModel model) {
    return given == model;
  }

  /** What is trained, a copy. */
  public OnnxModel floats() {
    return floats.copy();
  }

  /** Whether weights are integers on grids that stay. */
  public boolean isInt8() {
    return integers != null;
  }

  /** The integers; null where {@link #isInt8} does not hold. */
  Int8Model integers() {
    return integers;
  }

  /** Which integers are not trained, and why: a line a reason. */
  public List<String> resting() {
    return resting;
  }
}
