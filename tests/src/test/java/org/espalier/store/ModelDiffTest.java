package org.espalier.store;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.store.ModelDiff.Change;
import org.espalier.store.ModelDiff.Layer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ModelDiffTest {
  @TempDir Path folder;

  @Test
  void tellsByLayerWhatHappened() {
    Path before =
        write(
            "a.safetensors",
            new TensorSpec("same", SafetensorsDtype.F32, List.of(2L)),
            floats(1, 2),
            new TensorSpec("half", SafetensorsDtype.F16, List.of(2L)),
            shorts(0x3c00, 0xc000), // 1, -2
            new TensorSpec("values", SafetensorsDtype.F32, List.of(4L)),
            floats(3, 0, 4, 0),
            new TensorSpec("zeros", SafetensorsDtype.BF16, List.of(1L)),
            shorts(0),
            new TensorSpec("gone", SafetensorsDtype.I8, List.of(1L)),
            bytes(7),
            new TensorSpec("int8", SafetensorsDtype.I8, List.of(2L)),
            bytes(-127, 5),
            new TensorSpec("packed", SafetensorsDtype.F8_E4M3, List.of(2L)),
            bytes(1, 2),
            new TensorSpec("typed", SafetensorsDtype.F32, List.of(1L)),
            floats(1));
    Path after =
        write(
            "b.safetensors",
            new TensorSpec("same", SafetensorsDtype.F32, List.of(2L)),
            floats(1, 2),
            new TensorSpec("half", SafetensorsDtype.F16, List.of(2L)),
            shorts(0x3c00, 0x0001), // 1, 2^-24
            new TensorSpec("values", SafetensorsDtype.F32, List.of(4L)),
            floats(3, 0, 4.5f, 0),
            new TensorSpec("zeros", SafetensorsDtype.BF16, List.of(1L)),
            shorts(0x3f80),
            new TensorSpec("int8", SafetensorsDtype.I8, List.of(2L)),
            bytes(127, 5),
            new TensorSpec("packed", SafetensorsDtype.F8_E4M3, List.of(2L)),
            bytes(1, 3),
            new TensorSpec("typed", SafetensorsDtype.I8, List.of(1L)),
            bytes(1),
            new TensorSpec("new", SafetensorsDtype.F32, List.of(1L)),
            floats(1));
    ModelDiff diff = ModelDiff.of(before, after);
    Map<String, Layer> layers =
        diff.layers().stream().collect(Collectors.toMap(Layer::name, l -> l));
    assertEquals(9, layers.size());
    assertEquals(Change.SAME, layers.get("same").change());
    assertEquals(
        new Layer("values", Change.VALUES, "f32[4]", "f32[4]", 4, 1, 0.5, 0.1, 2, 2),
        layers.get("values"));
    assertEquals(2 + 0x1p-24, layers.get("half").largest());
    assertEquals(Double.POSITIVE_INFINITY, layers.get("zeros").relative());
    assertEquals(1, layers.get("zeros").zerosBefore());
    assertEquals(254, layers.get("int8").largest());
    assertEquals(Change.REMOVED, layers.get("gone").change());
    assertEquals(Change.ADDED, layers.get("new").change());
    assertEquals(Change.TYPE, layers.get("typed").change());
    assertEquals("f32[1]", layers.get("typed").before());
    assertEquals("i8[1]", layers.get("typed").after());
    assertEquals(1, layers.get("packed").changed());
    assertTrue(Double.isNaN(layers.get("packed").largest()));
    assertTrue(ModelDiff.of(before, before).isEmpty());
  }

  @Test
  void namesTheLayersOfAnOnnxModel() throws IOException {
    Path before = folder.resolve("a.onnx");
    Files.write(before, SmallModels.mlp().toByteArray());
    OnnxModel model = OnnxModel.read(before);
    OnnxInitializer weight =
        model.initializers().stream().filter(i -> i.dims().length == 2).findFirst().orElseThrow();
    ByteBuffer changed =
        ByteBuffer.allocateDirect((int) weight.byteLength()).order(ByteOrder.LITTLE_ENDIAN);
    changed.put(weight.data()).flip();
    changed.putFloat(0, changed.getFloat(0) + 1);
    model.replaceInitializer(
        OnnxInitializer.of(weight.name(), weight.type(), weight.dims(), changed));
    Path after = folder.resolve("b.onnx");
    model.write(after);
    ModelDiff diff = ModelDiff.of(before, after);
    List<Layer> different = diff.layers().stream().filter(l -> l.change() != Change.SAME).toList();
    assertEquals(1, different.size());
    assertEquals(1, different.get(0).changed());
    assertEquals(1, different.get(0).largest(), 1e-6);
    assertEquals(List.of(), diff.operators());
    Path other =
        write("c.safetensors", new TensorSpec("x", SafetensorsDtype.I8, List.of(0L)), bytes());
    InputException e = assertThrows(InputException.class, () -> ModelDiff.of(before, other));
    assertTrue(e.getMessage().contains("different formats"), e.getMessage());
  }

  private Path write(String name, Object... specsAndData) {
    Path path = folder.resolve(name);
    List<TensorSpec> specs =
        List.of(specsAndData).stream()
            .filter(TensorSpec.class::isInstance)
            .map(TensorSpec.class::cast)
            .toList();
    try (AtomicFile file = AtomicFile.create(path)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      for (int i = 0; i < specsAndData.length; i += 2) {
        writer.append(((TensorSpec) specsAndData[i]).name(), (ByteBuffer) specsAndData[i + 1]);
      }
      writer.finish();
      file.commit();
    }
    return path;
  }

  private static ByteBuffer floats(float... values) {
    ByteBuffer data = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    data.asFloatBuffer().put(values);
    return data;
  }

  private static ByteBuffer shorts(int... values) {
    ByteBuffer data = ByteBuffer.allocate(2 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < values.length; i++) {
      data.putShort(2 * i, (short) values[i]);
    }
    return data;
  }

  private static ByteBuffer bytes(int... values) {
    ByteBuffer data = ByteBuffer.allocate(values.length);
    for (int i = 0; i < values.length; i++) {
      data.put(i, (byte) values[i]);
    }
    return data;
  }
}
