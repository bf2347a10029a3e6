package org.espalier.device;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeFalse;

import java.util.List;
import java.util.Random;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.InputException;
import org.espalier.op.FakeQuantize;
import org.espalier.op.GradientNorm;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.ScaleGradients;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** Devices: the reasons where there is none; the same results as on the CPU where there is one. */
@Tag("device")
class DeviceTest {
  @Test
  void bestIsCudaWhereItCanBe() {
    assertEquals(Cuda.isAvailable() ? "cuda:0" : "cpu", Device.best().toString());
    assertSame(Device.best(), Device.best());
    assertFalse(Device.cpu().isCuda());
    assertThrows(IllegalStateException.class, () -> Device.cpu().index());
    Device.cpu().makeCurrent();
  }

  @Test
  void cudaSaysWhyItIsAbsent() {
    assumeFalse(Cuda.isAvailable());
    String reason = Cuda.unavailabilityCause().getMessage();
    assertTrue(
        assertThrows(UnsupportedOperationException.class, () -> Device.cuda(0))
            .getMessage()
            .contains(reason));
    assertTrue(
        assertThrows(UnsupportedOperationException.class, () -> PinnedTensor.allocate(DType.F32, 4))
            .getMessage()
            .contains(reason));
  }

  @Test
  void theCpuHasNoStreams() {
    Device cpu = Device.cpu();
    assertThrows(IllegalArgumentException.class, () -> CudaStream.create(cpu));
    assertThrows(IllegalArgumentException.class, () -> CudaStream.defaultOf(cpu));
    assertThrows(IllegalArgumentException.class, () -> CudaEvent.create(cpu));
    assertThrows(IllegalArgumentException.class, () -> CudaMemory.allocate(cpu, 4));
    assertThrows(IllegalArgumentException.class, () -> CudaTensor.allocate(cpu, DType.F32, 4));
  }

  @Test
  void aTensorKnowsWhereItIs() {
    try (OwnedTensor host = OwnedTensor.allocate(DType.F32, 4)) {
      assertEquals(Device.cpu(), host.device());
      assertEquals(host.address(), host.pointerOn(Device.cpu()).address());
    }
  }

  // ---- from here on with a device

  private static Device device() {
    try (TestDevice test = new TestDevice()) {
      return test.device();
    }
  }

  private static FloatPointer floats(int n, long seed) {
    Random random = new Random(seed);
    FloatPointer values = new FloatPointer(n);
    for (int i = 0; i < n; i++) {
      values.put(i, (float) random.nextGaussian());
    }
    return values;
  }

  private static byte[] bytes(Pointer pointer, int n) {
    byte[] values = new byte[n];
    new BytePointer(pointer).position(0).capacity(n).get(values);
    return values;
  }

  private static CudaTensor upload(Device device, Tensor host) {
    CudaTensor tensor = CudaTensor.allocate(device, host.dtype(), host.shape());
    CudaStream stream = CudaStream.defaultOf(device);
    stream.copy(host, tensor);
    stream.synchronize();
    return tensor;
  }

  private static byte[] download(CudaTensor tensor) {
    try (PinnedTensor host = PinnedTensor.allocate(tensor.dtype(), tensor.shape())) {
      CudaStream stream = CudaStream.defaultOf(tensor.device());
      stream.copy(tensor, host);
      stream.synchronize();
      return bytes(host.pointer(), (int) host.bytes());
    }
  }

  /** The emulator has a library in the place of the driver's. */
  @Test
  void aDeviceTellsItsConditionOrWhyNot() {
    device();
    try {
      CudaCondition condition = Cuda.condition(0);
      // A part of a GPU that is shared may not tell, which is -1.
      assertTrue(condition.memoryBytes() != 0 && condition.celsius() != 0, condition.toString());
      if (Cuda.describe(0).startsWith("emulated")) {
        assertEquals(
            "driver 580.1, clocks 1980 MHz and 2619 MHz, 41 °C, ? W, 4.0 GiB of 16.0 GiB used",
            condition.toString());
      }
    } catch (UnsupportedOperationException e) {
      assertTrue(e.getMessage().startsWith("NVML: "), e.getMessage());
      assertFalse(Cuda.describe(0).startsWith("emulated"), e.getMessage());
    }
    assertThrows(IllegalArgumentException.class, () -> Cuda.condition(Cuda.deviceCount()));
  }

  @Test
  void noSuchDevice() {
    device();
    assertThrows(IllegalArgumentException.class, () -> Device.cuda(Cuda.deviceCount()));
    assertThrows(IllegalArgumentException.class, () -> Device.cuda(-1));
  }

  @Test
  void copiesWaitForEvents() {
    Device device = device();
    try (CudaStream first = CudaStream.create(device);
        CudaStream second = CudaStream.create(device);
        CudaEvent start = CudaEvent.create(device);
        CudaEvent end = CudaEvent.create(device);
        PinnedTensor from = PinnedTensor.allocate(DType.F32, 100);
        PinnedTensor to = PinnedTensor.allocate(DType.F32, 60);
        CudaTensor tensor = CudaTensor.allocate(device, DType.F32, 100)) {
      new FloatPointer(from.pointer()).put(41, 5f);
      start.record(first);
      first.copy(from, tensor);
      end.record(first);
      second.waitFor(end);
      second.copy(tensor.slice(40, 60), to);
      second.synchronize();
      end.synchronize();
      assertEquals(5f, new FloatPointer(to.pointer()).get(1));
      assertTrue(end.millisecondsSince(start) >= 0);
      assertThrows(IllegalArgumentException.class, () -> first.copy(tensor, to));
      assertThrows(IndexOutOfBoundsException.class, () -> tensor.slice(41, 60));
    }
  }

  @Test
  void whatIsClosedIsRefused() {
    Device device = device();
    CudaTensor tensor = CudaTensor.allocate(device, DType.F32, 4);
    tensor.close();
    tensor.close();
    assertThrows(IllegalStateException.class, () -> tensor.pointerOn(device));
    CudaStream stream = CudaStream.create(device);
    stream.close();
    assertThrows(IllegalStateException.class, stream::synchronize);
  }

  @Test
  void theCpuRefusesDeviceMemory() {
    Device device = device();
    try (CudaTensor tensor = CudaTensor.allocate(device, DType.F32, 2, 3);
        OwnedTensor host = OwnedTensor.allocate(DType.F32, 2, 3)) {
      assertThrows(UnsupportedOperationException.class, tensor::pointer);
      assertThrows(UnsupportedOperationException.class, tensor::address);
      FloatPointer scale = new FloatPointer(1);
      assertThrows(
          IllegalArgumentException.class,
          () ->
              FakeQuantize.symmetric(8)
                  .batch(List.of(FakeQuantize.Job.fake(host, tensor, null, scale, null))));
    }
  }

  @Test
  void fakeQuantizeHasTheSameBits() {
    Device device = device();
    int rows = 7;
    int columns = 40;
    FloatPointer values = floats(rows * columns, 1);
    values.put(3, Float.NaN);
    Tensor x = Tensor.of(values, DType.F32, rows, columns);
    FakeQuantize options = FakeQuantize.symmetric(8).perChannel(0);
    try (OwnedTensor y = OwnedTensor.allocate(DType.F32, rows, columns);
        OwnedTensor gradient = OwnedTensor.allocate(DType.F32, rows, columns);
        CudaTensor deviceX = upload(device, x);
        CudaTensor deviceY = CudaTensor.allocate(device, DType.F32, rows, columns);
        CudaMemory deviceGate = CudaMemory.allocate(device, rows * columns / 8);
        CudaMemory deviceScale = CudaMemory.allocate(device, 4 * rows);
        CudaStream stream = CudaStream.create(device)) {
      BytePointer gate = new BytePointer(rows * columns / 8);
      FloatPointer scale = new FloatPointer(rows);
      FakeQuantize.NonFinite expected = options.run(FakeQuantize.Job.fake(x, y, gate, scale, null));
      FakeQuantize.Job job =
          FakeQuantize.Job.fake(
              deviceX, deviceY, deviceGate.asBytes(), deviceScale.asFloats(), null);
      assertEquals(expected, options.run(job));
      assertArrayEquals(bytes(y.pointer(), (int) y.bytes()), download(deviceY));
      try (FakeQuantize.Batch batch = options.batch(List.of(job))) {
        batch.queue(stream);
        assertEquals(List.of(expected), batch.result(stream));
      }
      FakeQuantize.backward(x, gate, gradient);
      FakeQuantize.backward(deviceX, deviceGate.asBytes(), deviceY);
      assertArrayEquals(bytes(gradient.pointer(), (int) gradient.bytes()), download(deviceY));
      for (int i = 0; i < columns; i++) {
        values.put(columns + i, Float.MIN_VALUE);
      }
      stream.copy(x, deviceX);
      stream.synchronize();
      InputException e = assertThrows(InputException.class, () -> options.run(job));
      assertTrue(e.getMessage().contains("channel 1"), e.getMessage());
    }
  }

  /** The MSE observer, fused on the CPU and not, over rows, columns and all; waiting, and queued twice. */
  @Test
  void mseHasTheSameBits() {
    Device device = device();
    long[][] shapes = {{7, 40}, {2, 40_000}, {300, 5}, {20_000}};
    Integer[] axes = {0, 0, -1, null};
    for (FakeQuantize base : List.of(FakeQuantize.affine(8), FakeQuantize.symmetric(4))) {
      for (int i = 0; i < shapes.length; i++) {
        FakeQuantize grid = axes[i] == null ? base : base.perChannel(axes[i]);
        FakeQuantize options = grid.mse(5, 0.4f);
        int elements = 1;
        for (long size : shapes[i]) {
          elements *= (int) size;
        }
        Tensor x = Tensor.of(floats(elements, 9), DType.F32, shapes[i]);
        int channels = (int) grid.channels(x);
        FloatPointer scale = new FloatPointer(channels);
        IntPointer zeroPoint = new IntPointer(channels);
        try (OwnedTensor y = OwnedTensor.allocate(DType.F32, shapes[i]);
            CudaTensor deviceX = upload(device, x);
            CudaTensor deviceY = CudaTensor.allocate(device, DType.F32, shapes[i]);
            CudaMemory deviceScale = CudaMemory.allocate(device, 4L * channels);
            CudaMemory deviceZero = CudaMemory.allocate(device, 4L * channels);
            CudaStream stream = CudaStream.create(device)) {
          FakeQuantize.NonFinite expected =
              options.run(FakeQuantize.Job.fake(x, y, null, scale, zeroPoint));
          FakeQuantize.Job job =
              FakeQuantize.Job.fake(
                  deviceX, deviceY, null, deviceScale.asFloats(), deviceZero.asInts());
          assertEquals(expected, options.run(job));
          try (FakeQuantize.Batch batch = options.batch(List.of(job))) {
            for (int turn = 0; turn < 2; turn++) {
              deviceScale.zero(stream);
              batch.queue(stream);
              assertEquals(List.of(expected), batch.result(stream));
              assertArrayEquals(bytes(scale, 4 * channels), bytes(deviceScale, stream));
              assertArrayEquals(bytes(zeroPoint, 4 * channels), bytes(deviceZero, stream));
              assertArrayEquals(bytes(y.pointer(), (int) y.bytes()), download(deviceY));
            }
          }
        }
      }
    }
  }

  /** Rows of one chunk and of several, columns, and one scale for all; waiting, and queued twice. */
  @Test
  void scaleGradientsHaveTheSameBits() {
    Device device = device();
    FakeQuantize options = FakeQuantize.affine(8);
    long[][] shapes = {{7, 40}, {2, 9000}, {300, 5}, {20_000}};
    Integer[] axes = {0, 0, -1, null};
    for (int i = 0; i < shapes.length; i++) {
      FakeQuantize grid = axes[i] == null ? options : options.perChannel(axes[i]);
      int elements = 1;
      for (long size : shapes[i]) {
        elements *= (int) size;
      }
      Tensor x = Tensor.of(floats(elements, 7), DType.F32, shapes[i]);
      Tensor gradY = Tensor.of(floats(elements, 8), DType.F32, shapes[i]);
      int channels = (int) grid.channels(x);
      FloatPointer scale = new FloatPointer(channels);
      IntPointer zeroPoint = new IntPointer(channels);
      for (int c = 0; c < channels; c++) {
        scale.put(c, 0.01f + 0.001f * c);
        zeroPoint.put(c, 100 + c);
      }
      FloatPointer byScale = new FloatPointer(channels);
      FloatPointer byZero = new FloatPointer(channels);
      float factor = grid.scaleGradientFactor(x);
      try (OwnedTensor gradX = OwnedTensor.allocate(DType.F32, shapes[i]);
          CudaTensor deviceX = upload(device, x);
          CudaTensor deviceGradY = upload(device, gradY);
          CudaTensor deviceGradX = CudaTensor.allocate(device, DType.F32, shapes[i]);
          CudaMemory deviceScale = CudaMemory.allocate(device, 4L * channels);
          CudaMemory deviceZero = CudaMemory.allocate(device, 4L * channels);
          CudaMemory deviceByScale = CudaMemory.allocate(device, 4L * channels);
          CudaMemory deviceByZero = CudaMemory.allocate(device, 4L * channels);
          CudaStream stream = CudaStream.create(device)) {
        deviceScale.copyFrom(scale, 4L * channels, stream);
        deviceZero.copyFrom(zeroPoint, 4L * channels, stream);
        stream.synchronize();
        grid.scaleGradient(x, gradY, gradX, scale, zeroPoint, byScale, byZero, factor);
        grid.scaleGradient(
            deviceX,
            deviceGradY,
            null,
            deviceScale.asFloats(),
            deviceZero.asInts(),
            deviceByScale.asFloats(),
            null,
            factor);
        assertArrayEquals(bytes(byScale, 4 * channels), bytes(deviceByScale, stream));
        ScaleGradients.Job job =
            new ScaleGradients.Job(
                deviceX,
                deviceGradY,
                deviceGradX,
                deviceScale.asFloats(),
                deviceZero.asInts(),
                deviceByScale.asFloats(),
                deviceByZero.asFloats(),
                factor);
        try (ScaleGradients gradients = grid.scaleGradients(List.of(job))) {
          for (int turn = 0; turn < 2; turn++) {
            deviceByScale.zero(stream);
            gradients.queue(stream);
            gradients.check(stream);
            assertArrayEquals(bytes(byScale, 4 * channels), bytes(deviceByScale, stream));
            assertArrayEquals(bytes(byZero, 4 * channels), bytes(deviceByZero, stream));
            assertArrayEquals(bytes(gradX.pointer(), (int) gradX.bytes()), download(deviceGradX));
          }
          // Other memory: what x holds is the gradient, and the other way round.
          ScaleGradients.Job turned =
              new ScaleGradients.Job(
                  deviceGradY,
                  deviceX,
                  null,
                  deviceScale.asFloats(),
                  deviceZero.asInts(),
                  deviceByZero.asFloats(),
                  null,
                  factor);
          for (List<ScaleGradients.Job> jobs : List.of(List.of(turned), List.of(job))) {
            gradients.replace(jobs);
            gradients.queue(stream);
          }
          gradients.check(stream);
          assertArrayEquals(bytes(byScale, 4 * channels), bytes(deviceByScale, stream));
          gradients.replace(List.of(turned));
          gradients.queue(stream);
          gradients.check(stream);
          FloatPointer byTurned = new FloatPointer(channels);
          ScaleGradients.Job here =
              new ScaleGradients.Job(x, gradY, null, scale, zeroPoint, byTurned, null, factor);
          try (ScaleGradients onCpu = grid.scaleGradients(List.of(here))) {
            onCpu.replace(
                List.of(
                    new ScaleGradients.Job(
                        gradY, x, null, scale, zeroPoint, byTurned, null, factor)));
            onCpu.run();
            assertThrows(IllegalArgumentException.class, () -> onCpu.replace(List.of(turned)));
            assertThrows(IllegalArgumentException.class, () -> onCpu.replace(List.of()));
          }
          assertArrayEquals(bytes(byTurned, 4 * channels), bytes(deviceByZero, stream));
          gradients.replace(List.of(job));
          scale.put(channels - 1, 0f);
          deviceScale.copyFrom(scale, 4L * channels, stream);
          stream.synchronize();
          IllegalArgumentException e = assertThrows(IllegalArgumentException.class, gradients::run);
          assertTrue(e.getMessage().contains("channel " + (channels - 1)), e.getMessage());
        }
        // What lies elsewhere is refused.
        assertThrows(
            IllegalArgumentException.class,
            () -> grid.scaleGradient(x, deviceGradY, null, scale, zeroPoint, byScale, byZero, 1f));
      }
    }
  }

  private static byte[] bytes(CudaMemory memory, CudaStream stream) {
    try (BytePointer host = new BytePointer(memory.bytes())) {
      memory.copyTo(host, memory.bytes(), stream);
      stream.synchronize();
      return bytes(host, (int) memory.bytes());
    }
  }

  @Test
  void kdSoftmaxLossHasTheSameGradient() {
    Device device = device();
    int rows = 5;
    int classes = 90;
    Tensor student = Tensor.of(floats(rows * classes, 2), DType.F32, rows, classes);
    Tensor teacher = Tensor.of(floats(rows * classes, 3), DType.F32, rows, classes);
    LongPointer labels = new LongPointer(new long[] {1, -100, 89, 0, 7});
    KdSoftmaxLoss.Settings settings = KdSoftmaxLoss.Settings.of(0.3, 2);
    try (OwnedTensor gradient = OwnedTensor.allocate(DType.F32, rows, classes);
        CudaTensor deviceStudent = upload(device, student);
        CudaTensor deviceTeacher = upload(device, teacher);
        CudaTensor deviceGradient = CudaTensor.allocate(device, DType.F32, rows, classes);
        CudaMemory deviceLabels = CudaMemory.allocate(device, 8 * rows)) {
      KdSoftmaxLoss.Batch batch =
          new KdSoftmaxLoss.Batch(
              KdSoftmaxLoss.Logits.of(student),
              KdSoftmaxLoss.Logits.of(teacher),
              labels,
              null,
              null,
              KdSoftmaxLoss.Logits.of(gradient));
      KdSoftmaxLoss.Batch there =
          new KdSoftmaxLoss.Batch(
              KdSoftmaxLoss.Logits.of(deviceStudent),
              KdSoftmaxLoss.Logits.of(deviceTeacher),
              deviceLabels.asLongs(),
              null,
              null,
              KdSoftmaxLoss.Logits.of(deviceGradient));
      CudaStream stream = CudaStream.defaultOf(device);
      try (KdSoftmaxLoss onCpu = new KdSoftmaxLoss(settings, batch);
          KdSoftmaxLoss onDevice = new KdSoftmaxLoss(settings, there)) {
        deviceLabels.copyFrom(labels, 8 * rows, stream);
        KdSoftmaxLoss.Result expected = onCpu.compute();
        assertEquals(expected.loss(), onDevice.compute().loss(), 1e-14);
        assertArrayEquals(
            bytes(gradient.pointer(), (int) gradient.bytes()), download(deviceGradient));
        labels.put(2, classes);
        deviceLabels.copyFrom(labels, 8 * rows, stream);
        IllegalArgumentException e =
            assertThrows(IllegalArgumentException.class, onDevice::compute);
        assertTrue(e.getMessage().contains("row 2"), e.getMessage());
      }
    }
  }

  /** What a host that has tensors and streams of its own hands over: an address without a size. */
  private static final class Foreign extends Pointer {
    Foreign(Pointer memory) {
      address = memory.address();
    }
  }

  @Test
  void memoryAndStreamsOfOthersAreUsedAndLeftToThem() {
    Device device = device();
    Tensor host = Tensor.of(floats(3_000, 7), DType.F32, 30, 100);
    try (CudaTensor theirs = upload(device, host);
        CudaStream queue = CudaStream.create(device)) {
      CudaStream ours = CudaStream.of(device, new Foreign(queue.handle()));
      try (CudaTensor view =
              CudaTensor.of(
                  device, new Foreign(theirs.pointerOn(device)), DType.F32, host.shape());
          GradientNorm onCpu =
              new GradientNorm(List.of(new GradientNorm.Gradient(host, null, null)));
          GradientNorm there =
              new GradientNorm(List.of(new GradientNorm.Gradient(view, null, null)))) {
        assertEquals(onCpu.compute(), there.compute(ours));
        assertEquals("F32[30, 100]", view.toString());
      }
      ours.close();
      // Neither the memory nor the stream is gone.
      queue.synchronize();
      assertArrayEquals(bytes(host.pointer(), (int) host.bytes()), download(theirs));
    }
  }

  @Test
  void theCostOfALaunchIsMeasured() {
    assertTrue(LaunchCost.microseconds(device(), 2, 2) > 0);
  }

  @Test
  void gradientNormHasTheSameBits() {
    Device device = device();
    Tensor gradient = Tensor.of(floats(20_000, 4), DType.F32, 20_000);
    try (CudaTensor there = upload(device, gradient);
        GradientNorm onCpu =
            new GradientNorm(List.of(new GradientNorm.Gradient(gradient, null, null)));
        GradientNorm onDevice =
            new GradientNorm(List.of(new GradientNorm.Gradient(there, null, null)))) {
      assertEquals(onCpu.compute(), onDevice.compute());
      assertEquals(onCpu.compute(), onDevice.compute());
    }
  }
}
