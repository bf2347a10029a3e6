package org.espalier.compress.onnx.channels;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.compress.onnx.ChannelPruner.Allocation;
import org.espalier.compress.onnx.ChannelPruner.Caches;
import org.espalier.compress.onnx.ChannelPruner.Narrowed;
import org.espalier.compress.onnx.OutputError;
import org.espalier.compress.onnx.OutputErrors;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.GroupedDecoder;
import org.espalier.format.onnx.GroupedDecoder.Form;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Decoders that take and give keys and values, in the forms of {@link GroupedDecoder}, without some heads and inner channels. */
class DecoderHeadsTest {
  private static final int WIDTH = 16;
  private static final int VOCABULARY = 50;
  private static final int LAYERS = 2;

  /** What damping leaves: a head's twin is told a little too small. */
  private static final double TWINS = 0.05;

  private final Random random = new Random(8);

  private static OnnxModel model(Form form) {
    return OnnxModel.of(GroupedDecoder.of(form, 3, VOCABULARY, WIDTH, LAYERS), "decoder");
  }

  private static List<HiddenChannels> find(OnnxModel model, Caches caches) {
    return new ChannelSearch(model, caches == Caches.NARROW).all();
  }

  static List<Arguments> found() {
    // How many channels or heads a set has, and how many numbers one is.
    List<Integer> inner = List.of(2 * WIDTH, 1);
    List<Integer> groups = List.of(2, 2 * GroupedDecoder.HEAD);
    List<Integer> heads = List.of(GroupedDecoder.HEADS, GroupedDecoder.HEAD);
    List<Arguments> all = new ArrayList<>();
    for (Form form : Form.values()) {
      boolean shared = GroupedDecoder.hasSharedKeys(form);
      List<List<Integer>> both = List.of(shared && form != Form.SINGLE ? groups : heads, inner);
      all.add(Arguments.of(form, Caches.KEEP, form == Form.HEADED ? List.of(inner) : both));
      all.add(Arguments.of(form, Caches.NARROW, both));
    }
    return all;
  }

  @ParameterizedTest
  @MethodSource
  void found(Form form, Caches caches, List<List<Integer>> expected) {
    ChannelSearch search = new ChannelSearch(model(form), caches == Caches.NARROW);
    List<HiddenChannels> sets = search.all();
    List<List<Integer>> one = sets.stream().map(set -> List.of(set.size(), set.numbers())).toList();
    List<List<Integer>> all = new ArrayList<>(expected);
    all.addAll(expected);
    assertEquals(all, one);
    int heads = (int) sets.stream().filter(set -> set.numbers() > 1).count();
    boolean given = hasHeadsInCaches(form);
    assertEquals(caches == Caches.KEEP && given ? LAYERS : 0, search.kept());
    assertEquals(
        caches == Caches.NARROW && given ? 4 * heads : 0,
        sets.stream().mapToInt(set -> set.caches().size()).sum());
  }

  /** Whether some of the heads of keys and values that it takes and gives could go. */
  private static boolean hasHeadsInCaches(Form form) {
    return form != Form.WHOLE && GroupedDecoder.groups(form) > 1;
  }

  static List<Arguments> forms() {
    return Arrays.stream(Form.values())
        .flatMap(form -> Arrays.stream(Caches.values()).map(caches -> Arguments.of(form, caches)))
        .toList();
  }

  /** A model without some heads and channels computes what the whole one does if nobody reads these. */
  @ParameterizedTest
  @MethodSource("forms")
  void othersStayAsTheyWere(Form form, Caches caches) throws OrtException {
    OnnxModel whole = model(form);
    OnnxModel narrow = model(form);
    Map<String, int[]> cut = new HashMap<>();
    List<HiddenChannels> sets = find(narrow, caches);
    for (HiddenChannels set : sets) {
      // Of heads one goes, of inner channels a quarter.
      int keep = Math.min(set.size() - 1, set.size() * 3 / 4);
      int[] kept = new ChannelFit(narrow, set, Map.of()).keep(keep);
      ChannelNarrowing narrowing = new ChannelNarrowing(narrow, set);
      narrowing.apply(new ChannelFit(narrow, set, Map.of()), keep);
      assertTrue(narrowing.inputs().isEmpty());
      for (HiddenChannels.Reader reader : set.readers()) {
        silence(whole, reader.slice(), set.size(), kept);
      }
      set.caches().forEach(cache -> cut.put(cache.value(), kept));
    }
    narrow.removeUnusedInitializers();
    narrow.check();
    for (int[] steps : steps(form)) {
      Map<String, OnnxTensor> inputs = inputs(whole, steps[0], steps[1]);
      Map<String, Values> expected = run(whole, inputs);
      Map<String, OnnxTensor> narrower = new HashMap<>(inputs);
      for (String past : cut.keySet()) {
        if (inputs.containsKey(past)) {
          Values now = cut(values(inputs.get(past)), cut.get(past));
          narrower.put(past, tensor(now.values(), now.shape()));
        }
      }
      Map<String, Values> actual = run(narrow, narrower);
      for (String output : expected.keySet()) {
        Values right = expected.get(output);
        right = cut.containsKey(output) ? cut(right, cut.get(output)) : right;
        assertArrayEquals(right.shape(), actual.get(output).shape(), output);
        assertArrayEquals(right.values(), actual.get(output).values(), 2e-5f, output);
      }
    }
    if (form != Form.WHOLE) {
      boolean fewer = caches == Caches.NARROW && hasHeadsInCaches(form);
      declared(narrow, GroupedDecoder.groups(form) - (fewer ? 1 : 0));
    }
  }

  /** Numbers of tokens, and of earlier ones. */
  private static int[][] steps(Form form) {
    return form == Form.WHOLE
        ? new int[][] {{1, 0}, {5, 0}}
        : new int[][] {{1, 0}, {5, 0}, {4, 3}, {1, 7}};
  }

  private static void declared(OnnxModel model, int heads) {
    List<ValueInfoProto> caches = new ArrayList<>(model.inputs());
    caches.addAll(model.outputs());
    caches.removeIf(v -> v.getType().getTensorType().getShape().getDimCount() != 4);
    assertEquals(
        Set.of((long) heads),
        caches.stream()
            .map(v -> v.getType().getTensorType().getShape().getDim(1).getDimValue())
            .collect(Collectors.toSet()));
    assertEquals(4 * LAYERS, caches.size());
  }

  /**
   * Of heads of which the second half are the first over again half can go: what reads the others is refitted by what
   * calibration saw of each.
   */
  @ParameterizedTest
  @MethodSource("forms")
  void twinsStandInForEachOther(Form form, Caches caches) throws OrtException {
    OnnxModel model = model(form);
    Set<String> heads = new HashSet<>();
    for (HiddenChannels set : find(model, caches)) {
      if (set.numbers() > 1) {
        heads.addAll(set.weights());
        twin(model, set);
      }
    }
    if (heads.isEmpty()) {
      assertEquals(Form.HEADED, form); // whose caches stay
      return;
    }
    OnnxModel whole = OnnxModel.of(model.toProto(), "whole");
    ActivationSource source = texts(400);
    List<Narrowed> sets =
        ChannelPruner.choosing(model, 0.5, Allocation.GLOBAL, caches, names -> heads)
            .prune(source, Progress.NONE);
    assertTrue(sets.stream().allMatch(set -> set.after() == set.before() / 2), sets.toString());
    Map<String, OnnxTensor> before = inputs(whole, 8, 0);
    Map<String, OnnxTensor> after = inputs(model, 8, 0);
    after.put("input_ids", before.get("input_ids"));
    float[] right = run(whole, before).get("logits").values();
    float[] now = run(model, after).get("logits").values();
    double error = OutputErrors.error(right, now);
    assertTrue(error < TWINS, "error " + error);
  }

  /** Makes what makes the second half of the channels that of the first. */
  private static void twin(OnnxModel model, HiddenChannels set) {
    Set<HiddenChannels.Slice> read =
        set.readers().stream().map(HiddenChannels.Reader::slice).collect(Collectors.toSet());
    for (HiddenChannels.Slice slice : set.slices()) {
      if (read.contains(slice)) {
        continue;
      }
      OnnxInitializer whole = model.constant(slice.constant());
      int each = slice.layout().each();
      int[] numbers = slice.layout().numbers(set.size(), each);
      int[] places = new int[set.size() * each];
      for (int i = 0; i < numbers.length; i++) {
        if (numbers[i] >= 0) {
          places[numbers[i]] = i;
        }
      }
      FloatBuffer floats = whole.floats();
      float[] values = new float[(int) whole.elements()];
      assertEquals(whole.dims().length - 1, slice.axis());
      for (int i = 0; i < values.length; i++) {
        int column = i % numbers.length;
        int from = numbers[column] < 0 ? column : places[numbers[column] % (places.length / 2)];
        values[i] = floats.get(floats.position() + i - column + from);
      }
      model.replaceConstant(OnnxInitializer.floats(slice.constant(), whole.dims(), values));
    }
  }

  /** What carries nothing goes, and what is left gives the same answers; by calibration and by magnitude. */
  @ParameterizedTest
  @MethodSource("forms")
  void whatCarriesNothingGoes(Form form, Caches caches) throws OrtException {
    for (boolean calibrated : new boolean[] {true, false}) {
      OnnxModel model = model(form);
      for (HiddenChannels set : find(model, caches)) {
        int[] kept = IntStream.range(0, set.size()).filter(c -> c % 2 == 1).toArray();
        for (HiddenChannels.Reader reader : set.readers()) {
          silence(model, reader.slice(), set.size(), kept);
        }
      }
      OnnxModel whole = OnnxModel.of(model.toProto(), "whole");
      ChannelPruner pruner =
          ChannelPruner.choosing(model, 0.5, Allocation.UNIFORM, caches, Set::copyOf);
      List<Narrowed> sets = pruner.prune(calibrated ? texts(24) : null, Progress.NONE);
      assertTrue(sets.stream().allMatch(set -> set.after() == set.before() / 2), sets.toString());
      Map<String, OnnxTensor> inputs = inputs(model, 5, 0);
      assertTrue(inputs.containsKey("input_ids"));
      Map<String, OnnxTensor> before = new HashMap<>(inputs(whole, 5, 0));
      before.put("input_ids", inputs.get("input_ids"));
      Values right = run(whole, before).get("logits");
      Values now = run(model, inputs).get("logits");
      assertArrayEquals(right.values(), now.values(), 1e-4f);
      // Keys and values that are given beside the answers are none.
      double error = new OutputError(whole, texts(2)).of(model);
      assertTrue(error < 1e-4, "error " + error);
      assertEquals(
          caches == Caches.KEEP && hasHeadsInCaches(form),
          pruner.kept().isPresent(),
          pruner.kept().orElse("none kept"));
    }
  }

  /** With shares that differ from layer to layer the model still runs, and its caches say how many heads each has. */
  @ParameterizedTest
  @MethodSource("forms")
  void sharesMayDiffer(Form form, Caches caches) throws OrtException {
    OnnxModel model = model(form);
    ChannelPruner.choosing(model, 0.3, Allocation.GLOBAL, caches, Set::copyOf)
        .prune(texts(24), Progress.NONE);
    for (int[] steps : steps(form)) {
      run(model, inputs(model, steps[0], steps[1]));
    }
  }

  /** Keys and values that nobody can know for such keep their heads, and so do those whose number is used elsewhere. */
  @ParameterizedTest
  @EnumSource(value = Form.class, mode = EnumSource.Mode.EXCLUDE, names = "WHOLE")
  void whatOthersMayKnowStays(Form form) {
    GraphProto graph = model(form).toProto().getGraph();
    GraphProto.Builder renamed = graph.toBuilder();
    for (NodeProto.Builder n : renamed.getNodeBuilderList()) {
      for (int i = 0; i < n.getOutputCount(); i++) {
        n.setOutput(i, other(n.getOutput(i)));
      }
      for (int i = 0; i < n.getInputCount(); i++) {
        n.setInput(i, other(n.getInput(i)));
      }
    }
    renamed.getOutputBuilderList().forEach(output -> output.setName(other(output.getName())));
    ChannelSearch search = new ChannelSearch(with(form, renamed), true);
    assertEquals(find(model(form), Caches.KEEP).size(), search.all().size());
    assertEquals(0, search.kept());
    if (form != Form.TRACED) {
      return;
    }
    GraphProto.Builder counted = graph.toBuilder();
    NodeProto shape =
        graph.getNodeList().stream()
            .filter(n -> n.getOpType().equals("Shape") && n.getInput(0).equals("present.0.key"))
            .findFirst()
            .orElseThrow();
    counted
        .addNode(SmallModels.node("Gather", "/count", List.of(shape.getOutput(0), "one"), "count"))
        .addOutput(SmallModels.value("count", DataType.INT64));
    assertEquals(
        List.of(0, 0, 4, 0),
        find(with(form, counted), Caches.NARROW).stream().map(s -> s.caches().size()).toList());
  }

  /** A decoder whose keys and values are put into caches of a fixed length, as set 24 does it. */
  private static OnnxModel withFixedCaches() {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("decoder")
            .addInput(SmallModels.value("x", DataType.FLOAT, 1, -2, 8))
            .addInput(SmallModels.value("start", DataType.INT64, 1))
            .addInput(SmallModels.value("length", DataType.INT64, 1))
            .addInitializer(SmallModels.int64s("apart", 0, 0, 2, 16))
            .addInitializer(SmallModels.int64s("together", 0, 0, 32))
            .addInitializer(SmallModels.floats("out", new Random(5), 0.4f, 32, 8))
            .addOutput(SmallModels.value("y", DataType.FLOAT, 1, -2, 8));
    Random random = new Random(4);
    for (String part : List.of("query", "key", "value")) {
      graph
          .addInitializer(SmallModels.floats(part, random, 0.4f, 8, 32))
          .addNode(SmallModels.line(part + "_rows MatMul x " + part))
          .addNode(SmallModels.line(part + "_apart Reshape " + part + "_rows apart"))
          .addNode(
              SmallModels.line(
                  part + "_heads Transpose " + part + "_apart",
                  SmallModels.list("perm", 0, 2, 1, 3)));
      if (!part.equals("query")) {
        String past = "past_key_values.0." + part;
        String present = "present.0." + part;
        String inputs = past + " " + part + "_heads start";
        graph
            .addInput(SmallModels.value(past, DataType.FLOAT, 1, 2, 12, 16))
            .addNode(SmallModels.line(present + " TensorScatter " + inputs))
            .addOutput(SmallModels.value(present, DataType.FLOAT, 1, 2, 12, 16));
      }
    }
    List<String> inputs =
        List.of("query_heads", "present.0.key", "present.0.value", "", "", "", "length");
    graph
        .addNode(
            SmallModels.node(
                "Attention", "/attention", inputs, "seen", SmallModels.attribute("is_causal", 1)))
        .addNode(SmallModels.line("turned Transpose seen", SmallModels.list("perm", 0, 2, 1, 3)))
        .addNode(SmallModels.line("rows Reshape turned together"))
        .addNode(SmallModels.line("y MatMul rows out"));
    return OnnxModel.of(SmallModels.model(24, graph), "decoder");
  }

  @Test
  void cachesOfAFixedLengthLoseHeads() throws OrtException {
    assertEquals(List.of(), find(withFixedCaches(), Caches.KEEP));
    OnnxModel narrow = withFixedCaches();
    HiddenChannels set = find(narrow, Caches.NARROW).get(0);
    assertEquals(List.of(2, 16, 4), List.of(set.size(), set.numbers(), set.caches().size()));
    ChannelFit fit = new ChannelFit(narrow, set, Map.of());
    int[] kept = fit.keep(1);
    new ChannelNarrowing(narrow, set).apply(fit, 1);
    narrow.check();
    OnnxModel whole = withFixedCaches();
    set.readers().forEach(reader -> silence(whole, reader.slice(), 2, kept));
    float[] x = new float[3 * 8];
    float[] past = new float[2 * 12 * 16];
    for (float[] values : List.of(x, past)) {
      for (int i = 0; i < values.length; i++) {
        values[i] = (float) random.nextGaussian();
      }
    }
    Map<String, OnnxTensor> inputs = new HashMap<>();
    inputs.put("x", tensor(x, 1, 3, 8));
    inputs.put("start", number(4));
    inputs.put("length", number(7));
    Map<String, OnnxTensor> narrower = new HashMap<>(inputs);
    for (String cache : List.of("past_key_values.0.key", "past_key_values.0.value")) {
      inputs.put(cache, tensor(past, 1, 2, 12, 16));
      Values one = cut(values(inputs.get(cache)), kept);
      narrower.put(cache, tensor(one.values(), one.shape()));
    }
    Values right = run(whole, inputs).get("y");
    assertArrayEquals(right.values(), run(narrow, narrower).get("y").values(), 2e-5f);
  }

  /** Before operator set 13 a Split is told its lengths by an attribute, and before 10 a Slice where it cuts. */
  @Test
  void gatesOfEarlyOperatorSetsAreFound() throws OrtException {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("gate")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addInitializer(SmallModels.floats("both", random, 0.4f, 8, 32))
            .addInitializer(SmallModels.floats("down", random, 0.4f, 16, 8))
            .addNode(SmallModels.line("h MatMul x both"))
            .addNode(
                SmallModels.line(
                        "a Split h",
                        SmallModels.list("split", 16, 16),
                        SmallModels.attribute("axis", 1))
                    .toBuilder()
                    .addOutput("b"))
            .addNode(SmallModels.line("g Sigmoid a"))
            .addNode(SmallModels.line("c Mul g b"))
            .addNode(SmallModels.line("y MatMul c down"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    OnnxModel model = OnnxModel.of(SmallModels.model(11, graph), "gate");
    new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> true).prune(null, Progress.NONE);
    assertArrayEquals(new long[] {8, 16}, model.constant("both").dims());
    run(model, Map.of("x", tensor(new float[8], 1, 8)));
    // Slices of then are not told by inputs, which could be others: what they cut stays.
    GraphProto.Builder sliced = graph.clone();
    sliced.removeNode(1).addNode(1, slice("a", 0, 16)).addNode(2, slice("b", 16, 32));
    OnnxModel old = OnnxModel.of(SmallModels.model(9, sliced), "gate");
    assertEquals(List.of(), new ChannelSearch(old, false).all());
  }

  private static NodeProto slice(String output, long from, long to) {
    return SmallModels.line(
        output + " Slice h",
        SmallModels.list("axes", 1),
        SmallModels.list("starts", from),
        SmallModels.list("ends", to));
  }

  private static String other(String name) {
    return name.startsWith("present.") ? "cache." + name : name;
  }

  private static OnnxModel with(Form form, GraphProto.Builder graph) {
    return OnnxModel.of(model(form).toProto().toBuilder().setGraph(graph).build(), "decoder");
  }

  private static void silence(OnnxModel model, HiddenChannels.Slice slice, int size, int[] kept) {
    OnnxInitializer weight = model.constant(slice.constant());
    assertEquals(0, slice.axis());
    int[] channels = slice.layout().numbers(size, 1);
    float[] values = new float[(int) weight.elements()];
    FloatBuffer floats = weight.floats();
    int columns = values.length / channels.length;
    for (int i = 0; i < values.length; i++) {
      boolean stays = Arrays.binarySearch(kept, channels[i / columns]) >= 0;
      values[i] = stays ? floats.get(floats.position() + i) : 0;
    }
    model.replaceConstant(OnnxInitializer.floats(slice.constant(), weight.dims(), values));
  }

  private record Values(long[] shape, float[] values) {}

  private static Values values(OnnxTensor tensor) {
    FloatBuffer buffer = tensor.getFloatBuffer();
    float[] values = new float[buffer.remaining()];
    buffer.get(values);
    return new Values(tensor.getInfo().getShape(), values);
  }

  /** Some heads of [1, heads, steps, numbers]. */
  private static Values cut(Values all, int[] kept) {
    int head = (int) (all.shape()[2] * all.shape()[3]);
    float[] values = new float[kept.length * head];
    for (int i = 0; i < kept.length; i++) {
      System.arraycopy(all.values(), kept[i] * head, values, i * head, head);
    }
    return new Values(new long[] {1, kept.length, all.shape()[2], all.shape()[3]}, values);
  }

  /** Texts that begin, with no keys and values of as many heads as the model says that runs them. */
  private ActivationSource texts(int count) {
    return (model, activations, receiver) -> {
      random.setSeed(count);
      List<Map<String, OnnxTensor>> examples = new ArrayList<>();
      try {
        for (int i = 0; i < count; i++) {
          examples.add(inputs(model, 9, 0));
        }
      } catch (OrtException e) {
        throw new IllegalStateException(e);
      }
      new TensorActivations(examples, 1).run(model, activations, receiver);
    };
  }

  /** Inputs of one text, with keys and values of as many heads as the model says. */
  private Map<String, OnnxTensor> inputs(OnnxModel model, int steps, int past) throws OrtException {
    Map<String, OnnxTensor> inputs = new HashMap<>();
    for (ValueInfoProto input : model.inputs()) {
      String name = input.getName();
      if (name.equals("input_ids")) {
        long[] ids = random.longs(steps, 0, VOCABULARY).toArray();
        inputs.put(name, longs(ids));
      } else if (name.equals("attention_mask")) {
        long[] ones = new long[steps + past];
        Arrays.fill(ones, 1);
        inputs.put(name, longs(ones));
      } else {
        int heads = (int) input.getType().getTensorType().getShape().getDim(1).getDimValue();
        float[] values = new float[heads * past * GroupedDecoder.HEAD];
        for (int i = 0; i < values.length; i++) {
          values[i] = (float) random.nextGaussian();
        }
        inputs.put(name, tensor(values, 1, heads, past, GroupedDecoder.HEAD));
      }
    }
    return inputs;
  }

  /** A vector. */
  private static OnnxTensor number(long value) throws OrtException {
    return OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), new long[] {value});
  }

  private static OnnxTensor longs(long[] values) throws OrtException {
    return OnnxTensor.createTensor(
        OrtEnvironment.getEnvironment(), LongBuffer.wrap(values), new long[] {1, values.length});
  }

  private static OnnxTensor tensor(float[] values, long... shape) throws OrtException {
    return OnnxTensor.createTensor(
        OrtEnvironment.getEnvironment(), FloatBuffer.wrap(values), shape);
  }

  private static Map<String, Values> run(OnnxModel model, Map<String, OnnxTensor> inputs)
      throws OrtException {
    byte[] bytes = model.toProto().toByteArray();
    Map<String, Values> outputs = new HashMap<>();
    try (OrtSession session = OrtEnvironment.getEnvironment().createSession(bytes);
        OrtSession.Result result = session.run(inputs)) {
      for (Map.Entry<String, OnnxValue> e : result) {
        outputs.put(e.getKey(), values((OnnxTensor) e.getValue()));
      }
    }
    return outputs;
  }
}
