package org.espalier.cli;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class InspectTest {
  @TempDir Path folder;

  @Test
  void countsZerosOfEitherSignInSafetensors() throws IOException {
    Path file = folder.resolve("m.safetensors");
    String header =
        "{\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
            + "\"embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]}}";
    byte[] bytes = RawSafetensors.bytes(header, 22);
    ByteBuffer data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    data.position(bytes.length - 22);
    data.putFloat(-0f).putFloat(0f).putFloat(1f).putFloat(Float.MIN_VALUE);
    data.putShort((short) 0x8000).putShort((short) 0x8001).putShort((short) 1);
    Files.write(file, bytes);

    JsonNode json = Run.of("inspect", file, "--json").json();

    assertEquals("safetensors", json.get("format").asText());
    assertEquals(7, json.get("elements").asLong());
    JsonNode weight = json.get("tensors").get(0);
    assertEquals("a.weight", weight.get("name").asText());
    assertEquals("[2,2]", weight.get("shape").toString());
    assertEquals("f32", weight.get("dtype").asText());
    assertEquals(16, weight.get("bytes").asLong());
    assertEquals(2, weight.get("zeros").asLong());
    assertEquals(0.5, weight.get("sparsity").asDouble());
    JsonNode embedding = json.get("tensors").get(1);
    assertEquals("embedding", embedding.get("kind").asText());
    assertEquals(1, embedding.get("zeros").asLong());

    String table = Run.of("inspect", file).done().out();
    assertTrue(table.contains("[2x2]") && table.contains("50.00 %"), table);
    assertTrue(table.endsWith("2 tensors, 7 elements, 22 B\n"), table);
  }

  /** Rows of 11 integers take two words, whose last five places stand for nothing; 0 is stored as 8. */
  @Test
  void countsTheIntegersOfPackedWordsAndNotTheWords() throws IOException {
    Path file = folder.resolve("m.safetensors");
    for (boolean symmetric : new boolean[] {true, false}) {
      String zeroPoint = symmetric ? "a.other" : "a.weight_zero_point";
      String header =
          "{\"a.weight_shape\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]},"
              + "\"a.weight_packed\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[16,32]},"
              + ("\""
                  + zeroPoint
                  + "\":{\"dtype\":\"I32\",\"shape\":[1,1],\"data_offsets\":[32,36]},")
              + "\"b.weight_packed\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[36,40]},"
              + "\"c.weight_packed\":{\"dtype\":\"I32\",\"shape\":[2,0],\"data_offsets\":[40,40]},"
              + "\"c.weight_shape\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[40,56]}}";
      byte[] bytes = RawSafetensors.bytes(header, 56);
      ByteBuffer data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
      data.putLong(bytes.length - 16, 2).putLong(bytes.length - 8, -3);
      data.position(bytes.length - 56);
      data.putLong(2).putLong(11);
      data.putInt(0x88888881).putInt(0x00000818).putInt(0x12345678).putInt(0x88888888);
      Files.write(file, bytes);

      JsonNode tensors = Run.of("inspect", file, "--json").json().get("tensors");
      JsonNode packed = tensors.get(symmetric ? 1 : 0);
      assertEquals("a.weight_packed", packed.get("name").asText());
      assertEquals("[2,11]", packed.get("shape").toString());
      assertEquals(symmetric ? "int4" : "uint4", packed.get("dtype").asText());
      assertEquals(22, packed.get("elements").asLong());
      assertEquals(16, packed.get("bytes").asLong());
      if (symmetric) {
        assertEquals(7 + 2 + 1 + 3, packed.get("zeros").asLong());
      } else {
        assertFalse(packed.has("zeros"));
      }
      // Without a shape, or with one that cannot be, they are what they say: words.
      assertEquals("i32", tensors.get(3).get("dtype").asText());
      assertEquals("i32", tensors.get(4).get("dtype").asText());
    }
  }

  @Test
  void namesTheWeightsOfAnOnnxModel() throws IOException {
    Path file = folder.resolve("m.onnx");
    Files.write(file, SmallModels.mlp().toByteArray());
    JsonNode json = Run.of("inspect", file, "--json").json();
    assertEquals("onnx", json.get("format").asText());
    assertTrue(json.get("opset").asLong() > 0);
    assertTrue(json.get("tensors").findValuesAsText("kind").contains("gemm"), json.toString());
  }

  @Test
  void tellsTransposedConvolutionsAndRecurrentLayers() throws IOException {
    Path file = Files.write(folder.resolve("m.onnx"), SmallModels.recurrent().toByteArray());
    List<String> kinds =
        Run.of("inspect", file, "--json").json().get("tensors").findValuesAsText("kind");
    kinds.removeIf("null"::equals);
    assertEquals(
        List.of("conv", "conv_transpose", "lstm", "lstm", "gru", "gru", "rnn", "rnn", "gemm"),
        kinds);
  }

  /** Behind a DequantizeLinear, with a Transpose or without, and as integers. */
  @Test
  void tellsWhatIntegersAreUsedFor() throws IOException {
    byte[] bytes = new byte[16];
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, -1, 4))
            .addInput(value("ids", DataType.INT64, -1))
            .addInitializer(SmallModels.number("s", 0.1f))
            .addInitializer(SmallModels.tensor("bias", DataType.INT32, ByteBuffer.wrap(bytes), 4))
            .addNode(SmallModels.line("a DequantizeLinear product s"))
            .addNode(SmallModels.line("b MatMul x a"))
            .addNode(SmallModels.line("c DequantizeLinear turned s"))
            .addNode(SmallModels.line("d Transpose c", SmallModels.attribute("perm", 1, 0)))
            .addNode(SmallModels.line("e DequantizeLinear bias s"))
            .addNode(SmallModels.line("f Gemm b d e"))
            .addNode(SmallModels.line("q QuantizeLinear f s"))
            .addNode(SmallModels.line("y MatMulInteger q integers"))
            .addNode(SmallModels.line("z Gather table ids"))
            .addOutput(value("y", DataType.INT32, -1, 4))
            .addOutput(value("z", DataType.UINT8, -1, 4));
    for (String name : List.of("product", "turned", "integers", "table")) {
      DataType type = name.equals("table") ? DataType.UINT8 : DataType.INT8;
      graph.addInitializer(SmallModels.tensor(name, type, ByteBuffer.wrap(bytes), 4, 4));
    }
    Path file = folder.resolve("m.onnx");
    OnnxModel.of(SmallModels.model(13, graph), "m").write(file);
    Map<String, String> kinds = new TreeMap<>();
    for (JsonNode tensor : Run.of("inspect", file, "--json").json().get("tensors")) {
      kinds.put(tensor.get("name").asText(), tensor.get("kind").asText());
    }
    assertEquals(
        "{bias=null, integers=matmul, product=matmul, s=null, table=embedding, turned=gemm}",
        kinds.toString());
  }

  /** Zeros are the integers that 0 is, whichever those are. */
  @ParameterizedTest
  @ValueSource(strings = {"onnx-dynamic", "onnx-qdq"})
  void countsZerosOfUnsignedWeights(String form) throws IOException {
    Path model = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    Path sparse = folder.resolve("sparse.onnx");
    Run.of("prune", model, "-o", sparse, "--amount", "0.5").done();
    List<Map<String, Integer>> zeros = new ArrayList<>();
    for (String integers : List.of("--float-embeddings", "--unsigned-weights")) {
      Path out = folder.resolve("out.onnx");
      Run.of("quantize", sparse, "-o", out, "--to", form, "--calibration=" + inputs(), integers)
          .done();
      Map<String, Integer> found = new TreeMap<>();
      for (JsonNode tensor : Run.of("inspect", out, "--json").json().get("tensors")) {
        if (tensor.get("shape").size() == 2) {
          found.put(tensor.get("name").asText(), tensor.get("zeros").asInt());
        }
      }
      zeros.add(found);
    }
    assertEquals(2, zeros.get(0).size(), zeros.toString());
    assertTrue(zeros.get(0).values().stream().allMatch(n -> n > 10), zeros.toString());
    assertEquals(zeros.get(0), zeros.get(1));
  }

  private Path inputs() {
    ByteBuffer x = ByteBuffer.allocate(4 * 8 * 16).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(3);
    while (x.hasRemaining()) {
      x.putFloat((float) random.nextGaussian());
    }
    Path file = folder.resolve("x.safetensors");
    TensorSpec spec = new TensorSpec("x", SafetensorsDtype.F32, List.of(16L, 8L));
    RawSafetensors.write(file, Map.of(), Map.of(spec, x.array()));
    return file;
  }

  @Test
  void doesNotCountZerosOfSeveralZeroPoints() throws IOException {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.UINT8, -1, 2))
            .addInitializer(
                SmallModels.tensor("w", DataType.UINT8, ByteBuffer.wrap(new byte[4]), 2, 2))
            .addInitializer(
                SmallModels.tensor("z", DataType.UINT8, ByteBuffer.wrap(new byte[] {0, 5}), 2))
            .addNode(SmallModels.node("MatMulInteger", "", List.of("x", "w", "", "z"), "y"))
            .addOutput(value("y", DataType.INT32, -1, 2));
    Path file = folder.resolve("m.onnx");
    OnnxModel.of(SmallModels.model(13, graph), "m").write(file);
    for (JsonNode tensor : Run.of("inspect", file, "--json").json().get("tensors")) {
      assertEquals(tensor.get("name").asText().equals("z"), tensor.has("zeros"));
    }
  }

  /** A product of 72 input channels, which fill two blocks of 32 and a part of one, and a table of 64. */
  @Test
  void countsTheWeightsOfFourBitsAndNotTheirBytes() throws IOException {
    float[] product = new float[72 * 5];
    float[] table = new float[1024 * 64];
    for (float[] values : List.of(product, table)) {
      for (int i = 0; i < values.length; i++) {
        values[i] = i % 16 - 8;
      }
    }
    OnnxModel model =
        OnnxModel.of(
            SmallModels.model(
                13,
                GraphProto.newBuilder()
                    .setName("g")
                    .addInput(value("x", DataType.FLOAT, -1, 72))
                    .addInput(value("ids", DataType.INT64, -1))
                    .addInitializer(floats("w", product, 72, 5))
                    .addInitializer(floats("t", table, 1024, 64))
                    .addNode(node("MatMul", "m", List.of("x", "w"), "y"))
                    .addNode(node("Gather", "l", List.of("t", "ids"), "z"))
                    .addOutput(value("y", DataType.FLOAT, -1, 5))
                    .addOutput(value("z", DataType.FLOAT, -1, 64))),
            "m");
    Path plain = folder.resolve("plain.onnx");
    Path packed = folder.resolve("packed.onnx");
    model.write(plain);
    JsonNode before = Run.of("inspect", plain, "--json").json().get("tensors");
    new BlockQuantizer(model, BlockQuantizer.Options.of(4)).apply();
    model.write(packed);
    JsonNode after = Run.of("inspect", packed, "--json").json().get("tensors");
    for (JsonNode was : before) {
      JsonNode is = null;
      for (JsonNode t : after) {
        is = t.get("name").asText().equals(was.get("name").asText() + "_quantized") ? t : is;
      }
      assertEquals("int4", is.get("dtype").asText());
      assertEquals(was.get("kind"), is.get("kind"));
      assertEquals(was.get("elements"), is.get("elements"));
      assertEquals(was.get("zeros"), is.get("zeros"), is.toString());
      boolean isTable = was.get("kind").asText().equals("embedding");
      assertEquals(isTable ? "[1024,64]" : "[5,72]", is.get("shape").toString());
      assertEquals(isTable ? 1024 * 32 : 5 * 48, is.get("bytes").asLong());
    }
    // The scales are no float matrix that was forgotten.
    Run again = Run.of("quantize", packed, "-o", folder.resolve("again.onnx"), "--to", "onnx-int4");
    assertEquals(2, again.code(), again.err());
    assertTrue(again.err().contains("it is quantized already"), again.err());
    assertFalse(again.err().contains("float matri"), again.err());
  }

  @Test
  void refusesWhatIsNoModel() throws IOException {
    Run.refused(folder, new String[] {"there is no file", "x.onnx"}, "inspect", folder + "/x.onnx");
    Path text = Files.writeString(folder.resolve("notes.txt"), "hello");
    Run.refused(folder, new String[] {"notes.txt", ".onnx"}, "inspect", text);
    Path onnx = Files.writeString(folder.resolve("bad.onnx"), "hello");
    Run.refused(folder, new String[] {"bad.onnx", "not an ONNX model"}, "inspect", onnx);
    Path truncated = Files.write(folder.resolve("t.safetensors"), new byte[] {1, 2, 3});
    Run.refused(folder, new String[] {"t.safetensors", "3 bytes"}, "inspect", truncated);
    Run.refused(folder, new String[] {"neither model.safetensors nor"}, "inspect", folder);
    Run.refused(folder, new String[] {"empty path"}, "inspect", "");
  }
}
