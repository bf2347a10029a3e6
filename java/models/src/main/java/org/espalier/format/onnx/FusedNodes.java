package org.espalier.format.onnx;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;

/**
 * Operators into which ONNX Runtime's optimizers put weights together with what is computed behind them: Attention,
 * EmbedLayerNormalization, FusedGemm, FusedConv and FusedMatMul. Written apart, their weights are those of products and look-ups like
 * all others, which can be pruned, quantized and trained. What holds no matrix stays as it is.
 */
public final class FusedNodes {
  private static final String DOMAIN = "com.microsoft";

  /** Inputs of operators, in the order of their specification. */
  private static final int MASK = 3;

  private static final int PAST = 4;

  /** Attributes of a fused activation, by what its own operator calls them. */
  private static final Map<String, String> GEMM_ACTIVATION =
      Map.of(
          "activation_alpha", "alpha",
          "activation_beta", "beta",
          "activation_gamma", "gamma");

  /** From this set on what was an attribute of Split, ReduceSum and Unsqueeze is an input. */
  private static final long AXES_AS_INPUT = 13;

  private final OnnxModel model;
  private final OnnxModel.Names names;
  private final Map<String, NodeProto> producers;
  private final boolean asInput;
  private final List<NodeProto> nodes = new ArrayList<>();

  /** How many nodes of each operator were written apart. */
  private final Map<String, Integer> split = new TreeMap<>();

  private FusedNodes(OnnxModel model) {
    this.model = model;
    this.names = model.names();
    this.producers = model.producers();
    this.asInput = model.opset("") >= AXES_AS_INPUT;
  }

  /**
   * Writes such nodes of the main graph apart, in place; values keep their names.
   *
   * @return what was changed, for people; nothing where nothing was
   */
  public static Optional<String> split(OnnxModel model) {
    FusedNodes fused = new FusedNodes(model);
    for (NodeProto n : model.nodes()) {
      if (!isRuntimes(n) || !fused.apart(n)) {
        fused.nodes.add(n);
      }
    }
    if (fused.split.isEmpty()) {
      return Optional.empty();
    }
    model.setNodes(fused.nodes);
    model.removeUnusedInitializers();
    List<String> counts = new ArrayList<>();
    fused.split.forEach((operator, count) -> counts.add(count + " " + operator));
    boolean one = counts.size() == 1 && counts.get(0).startsWith("1 ");
    return Optional.of(
        String.join(", ", counts)
            + (one ? " holds" : " hold")
            + " weights beside what is computed with them; here and in what is written these are"
            + " nodes of their own");
  }

  /** Whether a node's operator is one of ONNX Runtime's own. */
  static boolean isRuntimes(NodeProto n) {
    return n.getDomain().equals(DOMAIN);
  }

  private boolean apart(NodeProto n) {
    boolean apart =
        switch (n.getOpType()) {
          case "Attention" -> attention(n);
          case "EmbedLayerNormalization" -> embeddings(n);
          case "FusedGemm" -> gemm(n);
          case "FusedMatMul" -> product(n);
          case "FusedConv" -> convolution(n);
          default -> false;
        };
    if (apart) {
      split.merge(n.getOpType(), 1, Integer::sum);
    }
    return apart;
  }

  private static String input(NodeProto n, int i) {
    return i < n.getInputCount() ? n.getInput(i) : "";
  }

  private static String output(NodeProto n, int i) {
    return i < n.getOutputCount() ? n.getOutput(i) : "";
  }

  private String constant(String wanted, long[] dims, long... values) {
    String name = names.unique(wanted);
    model.addInitializer(OnnxInitializer.int64s(name, dims, values));
    return name;
  }

  /** Adds a node that makes a new value. */
  private String add(String op, String wanted, List<String> inputs, AttributeProto... attributes) {
    return addTo(names.unique(wanted), op, inputs, attributes);
  }

  /** Adds a node that makes a value that was there before. */
  private String addTo(String value, String op, List<String> inputs, AttributeProto... attributes) {
    nodes.add(
        NodeProto.newBuilder()
            .setOpType(op)
            .addAllInput(inputs)
            .addOutput(value)
            .addAllAttribute(List.of(attributes))
            .build());
    return value;
  }

  private boolean attention(NodeProto n) {
    OnnxInitializer w = model.constant(n.getInput(1));
    String past = input(n, PAST);
    if (w == null
        || w.dims().length != 2
        || Attributes.integer(n, "do_rotary", 0) == 1
        || Attributes.integer(n, "past_present_share_buffer", 0) == 1
        || !input(n, 6).isEmpty()
        || !isKnownMask(input(n, MASK))) {
      return false;
    }
    String y = output(n, 0);
    NodeProto.Builder heads =
        NodeProto.newBuilder().setOpType("MultiHeadAttention").setDomain(DOMAIN);
    heads.setName(n.getName()).addAllInput(queriesKeysValues(n, w)).addInput("");
    heads.addInput(input(n, MASK)).addInput(input(n, 5)).addOutput(y);
    for (String name : List.of("num_heads", "scale", "mask_filter_value", "unidirectional")) {
      if (Attributes.find(n, name) != null) {
        heads.addAttribute(Attributes.find(n, name));
      }
    }
    if (!past.isEmpty()) {
      for (int i = 0; i < 2; i++) {
        String which = constant(y + "/past/" + i, new long[0], i);
        heads.addInput(
            add("Gather", y + "/past/Gather", List.of(past, which), attribute("axis", 0)));
      }
    }
    String present = output(n, 1);
    if (!present.isEmpty()) {
      heads.addOutput(names.unique(present + "/k")).addOutput(names.unique(present + "/v"));
    }
    nodes.add(heads.build());
    if (!present.isEmpty()) {
      List<String> both = new ArrayList<>();
      for (int i = 1; i < 3; i++) {
        both.add(alongAxes("Unsqueeze", present + "/Unsqueeze", heads.getOutput(i), 0));
      }
      addTo(present, "Concat", both, attribute("axis", 0));
    }
    return true;
  }

  /**
   * Adds the product with the weight of an Attention, its bias, and the Split into queries, keys and values.
   *
   * @param w the weight [inputs, queries + keys + values]
   */
  private List<String> queriesKeysValues(NodeProto n, OnnxInitializer w) {
    long[] widths = Attributes.integers(n, "qkv_hidden_sizes");
    long third = w.dims()[1] / 3;
    long[] parts = widths == null ? new long[] {third, third, third} : widths;
    String y = output(n, 0);
    String all = add("MatMul", y + "/qkv/MatMul", List.of(input(n, 0), input(n, 1)));
    if (!input(n, 2).isEmpty()) {
      all = add("Add", y + "/qkv/Add", List.of(input(n, 2), all));
    }
    List<String> inputs = new ArrayList<>(List.of(all));
    NodeProto.Builder pieces = NodeProto.newBuilder().setOpType("Split");
    pieces.addAttribute(attribute("axis", 2));
    if (asInput) {
      inputs.add(constant(y + "/qkv/widths", new long[] {3}, parts));
    } else {
      pieces.addAttribute(attribute("split", parts));
    }
    List<String> qkv =
        List.of(names.unique(y + "/q"), names.unique(y + "/k"), names.unique(y + "/v"));
    nodes.add(pieces.addAllInput(inputs).addAllOutput(qkv).build());
    return qkv;
  }

  /** Adds a node that takes axes as its operator set does. */
  private String alongAxes(
      String op, String wanted, String x, long axis, AttributeProto... attributes) {
    List<AttributeProto> all = new ArrayList<>(List.of(attributes));
    List<String> inputs = new ArrayList<>(List.of(x));
    if (asInput) {
      inputs.add(constant(wanted + "/axes", new long[] {1}, axis));
    } else {
      all.add(attribute("axes", new long[] {axis}));
    }
    return add(op, wanted, inputs, all.toArray(new AttributeProto[0]));
  }

  /**
   * Whether a mask of Attention means the same to MultiHeadAttention: all but pairs of starts and ends of texts, which
   * look like the lengths of twice as many.
   */
  private boolean isKnownMask(String mask) {
    String value = mask;
    while (!value.isEmpty()) {
      if (model.valueInfo(value) != null
          && model.valueInfo(value).getType().getTensorType().hasShape()) {
        int rank = model.valueInfo(value).getType().getTensorType().getShape().getDimCount();
        if (rank > 1) {
          return rank < 4;
        }
      }
      NodeProto n = producers.get(value);
      if (n == null) {
        return false;
      }
      if (n.getOpType().equals("EmbedLayerNormalization") || n.getOpType().equals("ReduceSum")) {
        return true;
      }
      if (!OnnxModel.isOwn(n) || !Set.of("Cast", "Identity").contains(n.getOpType())) {
        return false;
      }
      value = n.getInput(0);
    }
    return true;
  }

  private boolean embeddings(NodeProto n) {
    String ids = input(n, 0);
    String parts = input(n, 1);
    String mask = input(n, 7);
    String y = output(n, 0);
    String lengths = output(n, 1);
    boolean isCounted = lengths.isEmpty() || !mask.isEmpty() || !isRead(lengths);
    if (!isCounted || parts.isEmpty() != input(n, 4).isEmpty()) {
      return false;
    }
    String places = input(n, 8);
    if (places.isEmpty()) {
      String shape = add("Shape", y + "/Shape", List.of(ids));
      String one = constant(y + "/one", new long[0], 1);
      String tokens = add("Gather", y + "/tokens", List.of(shape, one), attribute("axis", 0));
      String zero = constant(y + "/zero", new long[0], 0);
      places = add("Range", y + "/Range", List.of(zero, tokens, one));
    }
    AttributeProto rows = attribute("axis", 0);
    String word = add("Gather", y + "/words/Gather", List.of(input(n, 2), ids), rows);
    String place = add("Gather", y + "/places/Gather", List.of(input(n, 3), places), rows);
    String given = output(n, 2);
    String wanted = given.isEmpty() ? names.unique(y + "/sum") : given;
    String sum;
    if (parts.isEmpty()) {
      sum = addTo(wanted, "Add", List.of(word, place));
    } else {
      String part = add("Gather", y + "/parts/Gather", List.of(input(n, 4), parts), rows);
      String both = add("Add", y + "/Add", List.of(word, place));
      sum = addTo(wanted, "Add", List.of(both, part));
    }
    AttributeProto epsilon = Attributes.find(n, "epsilon");
    addTo(
        y,
        "LayerNormalization",
        List.of(sum, input(n, 5), input(n, 6)),
        attribute("axis", -1),
        epsilon == null ? attribute("epsilon", 1e-12f) : epsilon);
    if (!lengths.isEmpty() && isRead(lengths)) {
      List<String> inputs = new ArrayList<>(List.of(mask));
      AttributeProto keep = attribute("keepdims", 0);
      if (asInput) {
        inputs.add(constant(lengths + "/axes", new long[] {1}, 1));
        addTo(lengths, "ReduceSum", inputs, keep);
      } else {
        addTo(lengths, "ReduceSum", inputs, keep, attribute("axes", new long[] {1}));
      }
    }
    return true;
  }

  private boolean isRead(String value) {
    return model.consumers().containsKey(value) || model.outputNames().contains(value);
  }

  private boolean gemm(NodeProto n) {
    NodeProto.Builder gemm = n.toBuilder().setOpType("Gemm").clearDomain().clearAttribute();
    List<AttributeProto> activation = new ArrayList<>();
    for (AttributeProto a : n.getAttributeList()) {
      String name = GEMM_ACTIVATION.get(a.getName());
      if (name != null) {
        activation.add(a.toBuilder().setName(name).build());
      } else if (!a.getName().equals("activation")) {
        gemm.addAttribute(a);
      }
    }
    return activated(n, gemm, activation);
  }

  /** A product with a constant matrix, which may be turned, and a factor. */
  private boolean product(NodeProto n) {
    OnnxInitializer w = model.constant(n.getInput(1));
    if (w == null
        || w.dims().length != 2
        || w.type() == DataType.DOUBLE
        || Attributes.integer(n, "transA", 0) != 0
        || Attributes.integer(n, "transBatchA", 0) != 0
        || Attributes.integer(n, "transBatchB", 0) != 0) {
      return false;
    }
    String y = output(n, 0);
    String matrix = n.getInput(1);
    if (Attributes.integer(n, "transB", 0) != 0) {
      matrix =
          add("Transpose", y + "/Transpose", List.of(matrix), attribute("perm", new long[] {1, 0}));
    }
    AttributeProto alpha = Attributes.find(n, "alpha");
    List<String> factors = List.of(n.getInput(0), matrix);
    if (alpha == null || alpha.getF() == 1) {
      addTo(y, "MatMul", factors);
    } else {
      String factor = names.unique(y + "/alpha");
      model.addInitializer(OnnxInitializer.floats(factor, w.type(), new long[0], alpha.getF()));
      addTo(y, "Mul", List.of(add("MatMul", y + "/MatMul", factors), factor));
    }
    return true;
  }

  private boolean convolution(NodeProto n) {
    NodeProto.Builder conv = n.toBuilder().setOpType("Conv").clearDomain().clearAttribute();
    List<Float> parameters = List.of();
    for (AttributeProto a : n.getAttributeList()) {
      if (a.getName().equals("activation_params")) {
        parameters = a.getFloatsList();
      } else if (!a.getName().equals("activation")) {
        conv.addAttribute(a);
      }
    }
    String operator = activation(n);
    List<String> called =
        switch (operator) {
          case "LeakyRelu" -> List.of("alpha");
          case "HardSigmoid" -> List.of("alpha", "beta");
          default -> List.of();
        };
    if (called.size() != parameters.size() || !input(n, 3).isEmpty()) {
      return false;
    }
    List<AttributeProto> activation = new ArrayList<>();
    for (int i = 0; i < called.size(); i++) {
      activation.add(attribute(called.get(i), parameters.get(i)));
    }
    return activated(n, conv, activation);
  }

  private static String activation(NodeProto n) {
    AttributeProto a = Attributes.find(n, "activation");
    return a == null ? "" : a.getS().toStringUtf8();
  }

  /** Adds a product and the activation of its node. */
  private boolean activated(
      NodeProto n, NodeProto.Builder product, List<AttributeProto> attributes) {
    String operator = activation(n);
    String y = output(n, 0);
    String p = operator.isEmpty() ? y : names.unique(y + "/" + product.getOpType());
    nodes.add(product.setOutput(0, p).build());
    if (!operator.isEmpty()) {
      addTo(y, operator, List.of(p), attributes.toArray(new AttributeProto[0]));
    }
    return true;
  }
}
