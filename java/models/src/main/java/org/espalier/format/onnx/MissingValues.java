package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Set;

/**
 * Whether a model takes NaN as a missing value, as models of tables do: it asks which values are NaN, or
 * has operators that go their own way there. For all other models a NaN is an error in the data.
 */
public final class MissingValues {
  private static final String MACHINE_LEARNING = "ai.onnx.ml";

  private static final Set<String> OPERATORS =
      Set.of("Imputer", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor");

  private MissingValues() {}

  /** Whether NaN is a number like others in the model's inputs. */
  public static boolean areKnownTo(OnnxModel model) {
    return model.allNodes().stream().anyMatch(MissingValues::knows);
  }

  private static boolean knows(NodeProto n) {
    return OnnxModel.isOwn(n)
        ? n.getOpType().equals("IsNaN")
        : n.getDomain().equals(MACHINE_LEARNING) && OPERATORS.contains(n.getOpType());
  }
}
