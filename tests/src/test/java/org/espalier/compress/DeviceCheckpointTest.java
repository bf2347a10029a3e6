package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.device.Device;
import org.espalier.device.TestDevice;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.MagnitudePrune.Scope;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Checkpoints that go through a device come out with the bytes of those that do not. */
@Tag("device")
class DeviceCheckpointTest {
  @TempDir Path folder;

  private static void assertSameFiles(Path expected, Path actual) throws IOException {
    assertEquals(TestModel.files(expected), TestModel.files(actual));
    for (String file : TestModel.files(expected)) {
      assertArrayEquals(
          Files.readAllBytes(expected.resolve(file)),
          Files.readAllBytes(actual.resolve(file)),
          file);
    }
  }

  private CheckpointPruner.Job job(Path model, String name, MagnitudePrune.Rule rule, Path maskIn) {
    return new CheckpointPruner.Job(
        model,
        folder.resolve(name),
        rule,
        CheckpointPruner::isPrunable,
        maskIn,
        folder.resolve(name + ".masks"));
  }

  private CheckpointPruner.Result check(
      Path model, Device device, MagnitudePrune.Rule rule, Path maskIn, int turn)
      throws IOException {
    CheckpointPruner.Job onCpu = job(model, "cpu" + turn, rule, maskIn);
    CheckpointPruner.Job onDevice = job(model, "device" + turn, rule, maskIn);
    CheckpointPruner.Result expected = CheckpointPruner.prune(onCpu, (phase, done, total) -> {});
    CheckpointPruner.Result actual =
        CheckpointPruner.prune(onDevice, device, (phase, done, total) -> {});
    assertEquals(expected.tensors(), actual.tensors());
    assertEquals(expected.pruned(), actual.pruned());
    assertEquals(expected.threshold(), actual.threshold());
    assertSameFiles(onCpu.target(), onDevice.target());
    assertArrayEquals(
        Files.readAllBytes(onCpu.maskOut()), Files.readAllBytes(onDevice.maskOut()), rule + "");
    return expected;
  }

  @Test
  void prunesTheSame() throws IOException {
    Path model = TestModel.transformer().sharded(folder.resolve("model"), 3);
    try (TestDevice there = new TestDevice()) {
      int turn = 0;
      for (MagnitudePrune.Rule rule :
          List.of(
              new MagnitudePrune.Amount(0.5, Scope.GLOBAL),
              new MagnitudePrune.Amount(0.3, Scope.TENSOR),
              new MagnitudePrune.Count(777, Scope.GLOBAL),
              new MagnitudePrune.Threshold(0.03f),
              new MagnitudePrune.Pattern(2, 4))) {
        check(model, there.device(), rule, null, turn++);
      }
      CheckpointPruner.Result more =
          check(
              model,
              there.device(),
              new MagnitudePrune.Sparsity(0.8, Scope.GLOBAL),
              folder.resolve("cpu0.masks"),
              turn);
      assertTrue(more.pruned() > more.total() * 0.79);
    }
  }

  /** Tensors of several pieces, whose copies overlap. */
  @Test
  void prunesAndQuantizesPieceByPiece() throws IOException {
    Random random = new Random(3);
    Path model =
        new TestModel()
            .addRandom(random, "a.weight", SafetensorsDtype.BF16, 2311, 1024)
            .addRandom(random, "b.weight", SafetensorsDtype.F32, 5, 7)
            .single(folder.resolve("model"));
    try (TestDevice there = new TestDevice()) {
      check(model, there.device(), new MagnitudePrune.Amount(0.5, Scope.GLOBAL), null, 0);
      quantize(model, there.device(), LinearForm.INT8);
      quantize(model, there.device(), LinearForm.int4(0, true));
    }
  }

  private void quantize(Path model, Device device, LinearForm form) throws IOException {
    Path cpu = folder.resolve("cpu-" + form);
    Path other = folder.resolve("device-" + form);
    CheckpointQuantizer.quantize(
        new CheckpointQuantizer.Job(model, cpu, CheckpointQuantizer::isLinearWeight, form),
        (phase, done, total) -> {});
    CheckpointQuantizer.quantize(
        new CheckpointQuantizer.Job(model, other, CheckpointQuantizer::isLinearWeight, form),
        device,
        (phase, done, total) -> {});
    assertSameFiles(cpu, other);
  }

  @Test
  void quantizesTheSame() throws IOException {
    try (TestDevice there = new TestDevice()) {
      Path model = TestModel.transformer().sharded(folder.resolve("model"), 2);
      quantize(model, there.device(), LinearForm.INT8);
      quantize(model, there.device(), LinearForm.int4(0, false));
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void quantizesBlocksTheSame(boolean symmetric) throws IOException {
    Random random = new Random(3);
    Path model =
        new TestModel()
            .addRandom(random, "a.weight", SafetensorsDtype.BF16, 17, 512)
            .addRandom(random, "b.weight", SafetensorsDtype.F32, 3, 1024)
            .add("c.weight", SafetensorsDtype.F32, new float[9 * 128], 9, 128)
            .single(folder.resolve("model"));
    try (TestDevice there = new TestDevice()) {
      quantize(model, there.device(), LinearForm.int4(128, symmetric));
    }
  }

  @Test
  void refusesWhatTheCpuRefuses() throws IOException {
    Path pruned = TestModel.transformer().single(folder.resolve("model"));
    float[] values = new float[64];
    values[17] = Float.NaN;
    Path broken =
        new TestModel()
            .add("a.weight", SafetensorsDtype.F32, values, 4, 16)
            .single(folder.resolve("broken"));
    try (TestDevice there = new TestDevice()) {
      InputException e =
          assertThrows(
              InputException.class,
              () ->
                  CheckpointPruner.prune(
                      job(pruned, "out", new MagnitudePrune.Count(1 << 20, Scope.GLOBAL), null),
                      there.device(),
                      (phase, done, total) -> {}));
      assertTrue(e.getMessage().contains("more than what remains"), e.getMessage());
      e =
          assertThrows(
              InputException.class,
              () ->
                  CheckpointQuantizer.quantize(
                      new CheckpointQuantizer.Job(
                          broken,
                          folder.resolve("out"),
                          CheckpointQuantizer::isLinearWeight,
                          LinearForm.int4(0, false)),
                      there.device(),
                      (phase, done, total) -> {}));
      assertTrue(e.getMessage().contains("1 NaN and 0 infinite"), e.getMessage());
      assertTrue(Files.notExists(folder.resolve("out")));
    }
  }
}
