package org.espalier.compress.onnx.channels;

import static org.espalier.compress.onnx.RuntimeRuns.normal;
import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.compress.onnx.ChannelPruner.Allocation;
import org.espalier.compress.onnx.ChannelPruner.Narrowed;
import org.espalier.compress.onnx.OutputError;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Attentions of four heads of four numbers each, of which the last two are the first two over again, in the forms that
 * exporters give them: half of the heads can go, and the answers stay.
 */
class AttentionHeadsTest {
  private static final int WIDTH = 16;

  /** What damping leaves: a head's twin is told a little too small. */
  private static final double TWINS = 0.05;

  private final Random random = new Random(5);

  /** Numbers [rows, repeat · 16], of each sixteen of a row the second eight as the first. */
  private TensorProto twins(String name, int rows, int repeat) {
    float[] values = new float[rows * repeat * WIDTH];
    for (int i = 0; i < values.length; i++) {
      values[i] =
          i % WIDTH < WIDTH / 2 ? (float) random.nextGaussian() * 0.4f : values[i - WIDTH / 2];
    }
    long[] dims = rows == 1 ? new long[] {values.length} : new long[] {rows, repeat * WIDTH};
    return floats(name, values, dims);
  }

  /** Numbers [rows, 4, 3, 4], of which the last two of four are the first two: heads lie outside of queries and keys. */
  private TensorProto outermost(String name, int rows) {
    float[] values = new float[rows * 3 * WIDTH];
    for (int i = 0; i < values.length; i++) {
      boolean first = i % (3 * WIDTH) < 3 * WIDTH / 2;
      values[i] = first ? (float) random.nextGaussian() * 0.4f : values[i - 3 * WIDTH / 2];
    }
    return floats(name, values, rows, 3 * WIDTH);
  }

  /** The part behind queries, keys and values [n, heads, steps, numbers] named qt, kt and vt. */
  private static final String ATTEND =
      "; kx Transpose kt perm=0,1,3,2; s MatMul qt kx; r Div s root; p Softmax r axis=-1;"
          + " c MatMul p vt; ct Transpose c perm=0,2,1,3; ";

  private static final String ENDING = "f Reshape ct joined; o MatMul f wo; y Add o bo";

  private static final String PROJECTED =
      "qm MatMul x wq; q Add qm bq; km MatMul x wk; k Add bk km; v MatMul x wv; ";

  private static final String TURNED =
      "qh Reshape q split; kh Reshape k split; vh Reshape v split;"
          + " qt Transpose qh perm=0,2,1,3; kt Transpose kh perm=0,2,1,3;"
          + " vt Transpose vh perm=0,2,1,3";

  /** How PyTorch writes sizes of the input: the shape of a value, numbers of it, and others in one vector. */
  private static String sizes(String of, String joined, String... others) {
    return ("S0 Shape OF; S1 Gather S0 zero axis=0; S2 Gather S0 one axis=0; S3 Unsqueeze S1 axis0;"
            + " S4 Unsqueeze S2 axis0; SJ Concat S3 S4 "
            + String.join(" ", others)
            + " axis=0; ")
        .replace("SJ", joined)
        .replaceAll("\\bS(\\d)", joined + "$1")
        .replace("OF", of);
  }

  static List<String> narrowed() {
    return List.of(
        PROJECTED + TURNED + ATTEND + ENDING,
        // the numbers of heads, or of all, are what is left
        PROJECTED
            + TURNED.replace("split", "splitRest")
            + ATTEND
            + ENDING.replace("joined", "rest"),
        // as PyTorch writes sizes
        PROJECTED
            + sizes("q", "sq", "four1", "four1")
            + sizes("k", "sk", "four1", "four1")
            + TURNED.replace("q split", "q sq").replace("k split", "k sk")
            + ATTEND
            + sizes("ct", "sc", "sixteen1")
            + ENDING.replace("joined", "sc"),
        // as later exporters do
        PROJECTED
            + "n Shape q start=0 end=1; l Shape q start=1 end=2; sq Concat n l four1 four1 axis=0; "
            + TURNED.replace("split", "sq")
            + ATTEND
            + ENDING,
        // a mask, and a constant of each head
        PROJECTED
            + TURNED
            + ATTEND.replace(
                "p Softmax r",
                "m1 Unsqueeze mask axis1; m2 Unsqueeze m1 axis2; rm Add r m2; rb Add rm slopes;"
                    + " p Softmax rb")
            + ENDING,
        // steps that are not seen
        PROJECTED
            + TURNED
            + ATTEND.replace(
                "p Softmax r axis=-1",
                "m1 Unsqueeze mask axis1; m2 Unsqueeze m1 axis2; mb Greater m2 low;"
                    + " rw Where mb r low; ps Softmax rw axis=3; pn IsNaN ps; p Where pn zero1 ps")
            + ENDING,
        // one weight for queries, keys and values
        "a MatMul x wa; b Add a ba; h Reshape b split3; t Transpose h perm=2,0,3,1,4;"
            + " qt Gather t zero axis=0; kt Gather t one axis=0; vt Gather t two axis=0"
            + ATTEND
            + ENDING,
        "a MatMul x wa; b Add a ba; q,k,v Split b axis=-1; " + TURNED + ATTEND + ENDING,
        "a MatMul x wa; b Add a ba; h Reshape b split3; t Transpose h perm=2,0,3,1,4;"
            + " qs,ks,vs Split t axis=0; qt Squeeze qs axis0; kt Squeeze ks axis0;"
            + " vt Squeeze vs axis0"
            + ATTEND
            + ENDING,
        // the heads outermost
        "a MatMul x wu; h Reshape a outermost; t Transpose h perm=0,2,3,1,4;"
            + " qt Gather t zero axis=3; kt Gather t one axis=3; vt Gather t two axis=3"
            + ATTEND
            + ENDING,
        // products of matrices
        "xm Reshape x rows; am Gemm xm wa ba; b Reshape am fromRows; q,k,v Split b axis=2; "
            + TURNED
            + ATTEND
            + "f Reshape ct joined; fm Reshape f rows; ym Gemm fm wo bo; y Reshape ym likeX",
        // queries that are turned by their position
        PROJECTED
            + TURNED.replace("qt T", "qr T")
            + "; ql Slice qr from0 to2 last; qu Slice qr from2 to4 last; qn Neg qu;"
            + " qc Concat qn ql axis=-1; qs Mul qr cosine; qv Mul qc sine; qt Add qs qv"
            + ATTEND
            + ENDING,
        // queries of length one
        PROJECTED
            + TURNED.replace("qt T", "qr T")
            + "; qq ReduceL2 qr axes=-1; qt Div qr qq"
            + ATTEND
            + ENDING);
  }

  static List<String> kept() {
    return List.of(
        // Heads are compared with each other.
        PROJECTED + TURNED + ATTEND.replace("axis=-1", "axis=1") + ENDING,
        PROJECTED
            + TURNED
            + ATTEND.replace("r Div s root", "u ReduceMean s all; r Sub s u")
            + ENDING,
        // Somebody outside sees them, or tells something of each.
        PROJECTED + TURNED.replace("qt T", "seen T") + ATTEND.replace("qt", "seen") + ENDING,
        PROJECTED + TURNED + ATTEND.replace("r Div s root", "r Add s each") + ENDING,
        // The number of heads is computed with.
        PROJECTED
            + TURNED
            + ATTEND.replace(
                "r Div s root", "z Shape qt; w Gather z one axis=0; g Cast w to=1; r Div s g")
            + ENDING,
        PROJECTED
            + TURNED
            + ATTEND.replace("r Div s root", "z Shape qt start=1 end=2; g Cast z to=1; r Div s g")
            + ENDING,
        // What is made of the columns is no heads.
        PROJECTED
            + TURNED.replace("split;", "mixed;")
            + ATTEND.replace("perm=0,2,1,3", "perm=0,1,2,3")
            + ENDING,
        // Steps and heads are one.
        PROJECTED + TURNED.replace("split", "steps") + ATTEND + ENDING.replace("joined", "likeX"));
  }

  private ModelProto model(String lines) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("attention")
            .addInput(value("x", DataType.FLOAT, -1, -2, WIDTH))
            .addOutput(value("y", DataType.FLOAT, -1, -2, WIDTH));
    if (lines.contains("mask")) {
      g.addInput(value("mask", DataType.FLOAT, -1, -2));
    }
    if (lines.contains("each")) {
      g.addInput(value("each", DataType.FLOAT, 1, 4, 1, 1));
    }
    if (lines.contains("seen")) {
      g.addOutput(value("seen", DataType.FLOAT, -1, 4, -2, 4));
    }
    for (String weight : List.of("wq", "wk", "wv")) {
      g.addInitializer(twins(weight, WIDTH, 1));
    }
    g.addInitializer(twins("bq", 1, 1))
        .addInitializer(twins("bk", 1, 1))
        .addInitializer(twins("wa", WIDTH, 3))
        .addInitializer(twins("ba", 1, 3))
        .addInitializer(outermost("wu", WIDTH))
        .addInitializer(floats("wo", random, 0.3f, WIDTH, WIDTH))
        .addInitializer(floats("bo", random, 0.3f, WIDTH))
        .addInitializer(floats("slopes", new float[] {0.5f, 2, 0.5f, 2}, 1, 4, 1, 1))
        .addInitializer(floats("cosine", random, 1, 1, 1, 1, 4))
        .addInitializer(floats("sine", random, 1, 1, 1, 1, 4))
        .addInitializer(number("root", 2))
        .addInitializer(number("low", -0.5f))
        .addInitializer(number("zero1", 0))
        .addInitializer(int64s("split", 0, 0, 4, 4))
        .addInitializer(int64s("splitRest", 0, 0, -1, 4))
        .addInitializer(int64s("joined", 0, 0, WIDTH))
        .addInitializer(int64s("rest", 0, 0, -1))
        .addInitializer(int64s("split3", 0, 0, 3, 4, 4))
        .addInitializer(int64s("outermost", 0, 0, 4, 3, 4))
        .addInitializer(int64s("mixed", 0, -1, 2, 4))
        .addInitializer(int64s("steps", 0, -1, 1, 4))
        .addInitializer(int64s("rows", -1, WIDTH))
        .addInitializer(int64s("fromRows", 2, -1, 3 * WIDTH))
        .addInitializer(int64s("likeX", 2, -1, WIDTH))
        .addInitializer(int64s("four1", 4))
        .addInitializer(int64s("sixteen1", WIDTH))
        .addInitializer(int64s("axis0", 0))
        .addInitializer(int64s("axis1", 1))
        .addInitializer(int64s("axis2", 2))
        .addInitializer(int64s("all", 1, 2, 3))
        .addInitializer(int64s("last", -1))
        .addInitializer(int64s("from0", 0))
        .addInitializer(int64s("to2", 2))
        .addInitializer(int64s("from2", 2))
        .addInitializer(int64s("to4", 4));
    for (String scalar : List.of("zero", "one", "two")) {
      long v = List.of("zero", "one", "two").indexOf(scalar);
      g.addInitializer(int64s(scalar, v).toBuilder().clearDims());
    }
    for (String l : lines.split("; ")) {
      List<AttributeProto> attributes = new ArrayList<>();
      List<String> words = new ArrayList<>(List.of(l.split(" ")));
      for (String word : List.copyOf(words)) {
        String[] told = word.split("=");
        if (told.length == 2) {
          words.remove(word);
          long[] numbers =
              List.of(told[1].split(",")).stream().mapToLong(Long::parseLong).toArray();
          attributes.add(
              Set.of("axes", "perm").contains(told[0])
                  ? list(told[0], numbers)
                  : attribute(told[0], numbers[0]));
        }
      }
      List<String> names = List.of(words.get(0).split(","));
      words.set(0, names.get(0));
      NodeProto.Builder n =
          line(String.join(" ", words), attributes.toArray(AttributeProto[]::new)).toBuilder();
      g.addNode(n.addAllOutput(names.subList(1, names.size())));
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(17, g), "model");
    model.removeUnusedInitializers();
    return model.toProto();
  }

  /** Two texts of so many steps an example. */
  private TensorActivations examples(ModelProto proto, int count, int steps) throws OrtException {
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int e = 0; e < count; e++) {
      Map<String, OnnxTensor> example = new HashMap<>();
      example.put("x", normal(random, 2, steps, WIDTH));
      if (proto.getGraph().getInputCount() > 1) {
        example.put("mask", normal(random, 2, steps));
      }
      examples.add(example);
    }
    return new TensorActivations(examples, 1);
  }

  @ParameterizedTest
  @MethodSource
  void narrowed(String lines) throws OrtException {
    ModelProto proto = model(lines);
    OnnxModel model = OnnxModel.of(proto, "model");
    List<Narrowed> sets =
        new ChannelPruner(model, 0.5, Allocation.GLOBAL, name -> true)
            .prune(examples(proto, 32, 7), Progress.NONE);
    assertEquals(1, sets.size());
    assertEquals(List.of(4, 2), List.of(sets.get(0).before(), sets.get(0).after()));
    assertEquals(4, sets.get(0).numbers());
    assertTrue(
        model.toBuffer().remaining() < 0.75 * proto.getSerializedSize(),
        model.toBuffer().remaining() + " of " + proto.getSerializedSize());
    double error =
        new OutputError(OnnxModel.of(proto, "original"), examples(proto, 4, 11)).of(model);
    assertTrue(error < TWINS, "error " + error);
    // What was learned of the model before holds for the one that is left: it can lose more.
    OnnxModel again = OnnxModel.of(model.toProto(), "again");
    List<Narrowed> less =
        new ChannelPruner(again, 0.5, Allocation.UNIFORM, name -> true).prune(null, Progress.NONE);
    assertEquals(1, less.get(0).after());
    new OutputError(again, examples(proto, 1, 5)).of(again);
  }

  @ParameterizedTest
  @MethodSource
  void kept(String lines) {
    OnnxModel model = OnnxModel.of(model(lines), "model");
    InputException e =
        assertThrows(
            InputException.class,
            () -> new ChannelPruner(model, 0.5, Allocation.GLOBAL, name -> true));
    assertTrue(e.getMessage().contains("no channels lie between"), e.getMessage());
  }

  /** By magnitude the heads go whose weights are small, in the projections and behind them together. */
  @Test
  void smallHeadsGoFirst() throws OrtException {
    ModelProto proto = model(PROJECTED + TURNED + ATTEND + ENDING);
    GraphProto.Builder g = proto.getGraph().toBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      if (g.getInitializer(i).getName().equals("wo")) {
        float[] wo = new float[WIDTH * WIDTH];
        for (int k = 0; k < wo.length; k++) {
          // What the second and the fourth head give is of a hundredth.
          wo[k] = (float) random.nextGaussian() * (k / (4 * WIDTH) % 2 == 1 ? 0.003f : 0.3f);
        }
        g.setInitializer(i, floats("wo", wo, WIDTH, WIDTH));
      }
    }
    ModelProto uneven = proto.toBuilder().setGraph(g).build();
    OnnxModel model = OnnxModel.of(uneven, "model");
    new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> true).prune(null, Progress.NONE);
    double error =
        new OutputError(OnnxModel.of(uneven, "original"), examples(uneven, 4, 6)).of(model);
    assertTrue(error < 0.03, "error " + error);
  }

  /** Others that are told their shape by the same constants or Concat keep it. */
  @Test
  void shapesOfOthersStay() throws OrtException {
    String lines =
        PROJECTED
            + sizes("q", "sq", "four1", "four1")
            + TURNED.replace("split", "sq")
            + ATTEND
            + ENDING.replace("y Add o bo", "z Add o bo")
            + "; zh Reshape z sq; zt Transpose zh perm=0,2,1,3; zs Softmax zt axis=1;"
            + " zb Transpose zs perm=0,2,1,3; y Reshape zb joined";
    ModelProto proto = model(lines);
    OnnxModel model = OnnxModel.of(proto, "model");
    List<Narrowed> sets =
        new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> true)
            .prune(examples(proto, 32, 7), Progress.NONE);
    assertEquals(2, sets.get(0).after());
    double error =
        new OutputError(OnnxModel.of(proto, "original"), examples(proto, 4, 11)).of(model);
    assertTrue(error < TWINS, "error " + error);
  }

  /** A model without some heads computes what the whole one does if nobody reads these. */
  @ParameterizedTest
  @MethodSource("narrowed")
  void othersStayAsTheyWere(String lines) throws OrtException {
    ModelProto proto = model(lines);
    OnnxModel narrow = OnnxModel.of(proto, "narrow");
    HiddenChannels set = new ChannelSearch(narrow, false).all().get(0);
    new ChannelNarrowing(narrow, set).apply(new ChannelFit(narrow, set, Map.of()), 3);
    narrow.removeUnusedInitializers();
    OnnxModel whole = OnnxModel.of(proto, "whole");
    int[] kept = new ChannelFit(whole, set, Map.of()).keep(3);
    for (HiddenChannels.Reader reader : set.readers()) {
      String name = reader.slice().constant();
      float[] weight = new float[WIDTH * WIDTH];
      FloatBuffer now = whole.constant(name).floats();
      assertEquals(0, reader.slice().axis());
      for (int head : kept) {
        int from = head * weight.length / 4;
        now.get(now.position() + from, weight, from, weight.length / 4);
      }
      whole.replaceConstant(OnnxInitializer.floats(name, new long[] {WIDTH, WIDTH}, weight));
    }
    double error = new OutputError(whole, examples(proto, 3, 6)).of(narrow);
    assertTrue(error < 1e-5, "error " + error);
  }

  /** What is told of shapes before a model runs is what they are when it does. */
  @ParameterizedTest
  @MethodSource("narrowed")
  void shapesAreAsTold(String lines) throws OrtException {
    ModelProto proto = model(lines);
    OnnxModel model = OnnxModel.of(proto, "model");
    ValueShapes told = new ValueShapes(model);
    Set<String> values = new TreeSet<>();
    for (NodeProto n : model.nodes()) {
      boolean numbers =
          Set.of("Shape", "Greater", "IsNaN").contains(n.getOpType())
              || told.numbers().of(n.getOutput(0)) != null;
      if (!numbers) {
        values.addAll(n.getOutputList());
      }
    }
    Map<Long, Long> lengths = new HashMap<>();
    int[] known = {0};
    examples(proto, 1, 7)
        .run(
            model,
            values,
            (name, shape, v) -> {
              long[] before = told.of(name);
              assertEquals(before.length, shape.length, name);
              for (int i = 0; i < shape.length; i++) {
                long length =
                    ValueShapes.isKnown(before[i])
                        ? before[i]
                        : lengths.merge(before[i], shape[i], (first, now) -> first);
                assertEquals(length, shape[i], name + " axis " + i);
                known[0] += ValueShapes.isKnown(before[i]) ? 1 : 0;
              }
            });
    assertTrue(known[0] > values.size(), known[0] + " lengths of " + values.size() + " values");
  }
}
