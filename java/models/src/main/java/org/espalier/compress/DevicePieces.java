package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.InputException;
import org.espalier.device.CudaEvent;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.CudaTensor;
import org.espalier.device.Device;
import org.espalier.device.Tensor;
import org.espalier.op.MagnitudePrune;

/**
 * Pieces of weights from a CUDA device, which holds all chosen weights and prunes them in one call. Weights go in and
 * out through two page-locked buffers: while the device copies one, the host reads or writes the other.
 */
final class DevicePieces implements PrunedPieces {
  private static final int PIECE = KernelPieces.PIECE;

  /** A tensor on the device. */
  private record Resident(
      CudaMemory weights, CudaMemory maskIn, CudaMemory maskOut, long elements, int bytes) {}

  /** A pair of page-locked buffers and the event after which the host may use them again. */
  private record Slot(CudaMemory weights, CudaMemory bits, CudaEvent copied) {}

  private final Deque<AutoCloseable> owned = new ArrayDeque<>();
  private final List<Resident> residents = new ArrayList<>();
  private final Slot[] slots = new Slot[2];
  private final CudaStream stream;
  private final MagnitudePrune.Result result;
  private int current; // the slot whose piece the writer sees
  private int aheadIndex = -1; // what the other slot receives: the tensor, and from where on
  private long aheadFrom;
  private long elements; // of the piece, and the bytes of one
  private int elementBytes;

  /**
   * Uploads and prunes.
   *
   * @throws InputException where the weights do not fit into the device's memory, or the rule does not
   *     fit the weights
   */
  DevicePieces(
      CheckpointPruner.Job job,
      List<CheckpointPruner.Chosen> chosen,
      Device device,
      Progress progress) {
    try {
      stream = own(CudaStream.create(device));
      for (int s = 0; s < slots.length; s++) {
        slots[s] =
            new Slot(
                own(CudaMemory.pinned(4L * PIECE)),
                own(CudaMemory.pinned(PIECE / 8)),
                own(CudaEvent.create(device)));
      }
      result = prune(job, chosen, device, progress);
    } catch (OutOfMemoryError e) {
      close();
      throw new InputException(
          job.model()
              + ": the weights and their masks do not fit into the memory of "
              + device
              + " ("
              + e.getMessage()
              + "); the CPU prunes them piece by piece",
          e);
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  private <T extends AutoCloseable> T own(T resource) {
    owned.push(resource);
    return resource;
  }

  private MagnitudePrune.Result prune(
      CheckpointPruner.Job job,
      List<CheckpointPruner.Chosen> chosen,
      Device device,
      Progress progress) {
    List<MagnitudePrune.Weights> list = new ArrayList<>();
    for (CheckpointPruner.Chosen one : chosen) {
      Tensor view = one.view();
      long maskBytes = (view.elements() + 7) / 8;
      Resident resident =
          new Resident(
              own(CudaMemory.allocate(device, view.bytes())),
              one.mask() == null ? null : own(CudaMemory.allocate(device, maskBytes)),
              job.maskOut() == null ? null : own(CudaMemory.allocate(device, maskBytes)),
              view.elements(),
              view.dtype().bytes());
      residents.add(resident);
      CudaTensor tensor =
          CudaTensor.of(device, resident.weights().pointer(), view.dtype(), view.shape());
      MagnitudePrune.Weights whole = one.whole();
      list.add(
          new MagnitudePrune.Weights(
              whole.name(),
              tensor,
              tensor,
              bytesOf(resident.maskIn()),
              bytesOf(resident.maskOut()),
              whole.axis()));
    }
    long total = chosen.stream().mapToLong(one -> one.view().bytes()).sum();
    long done = 0;
    try (MagnitudePrune.Batch batch = MagnitudePrune.batch(list, job.rule())) {
      for (int t = 0; t < chosen.size(); t++) {
        CheckpointPruner.Chosen one = chosen.get(t);
        progress.at(Progress.Phase.SELECT, done, total);
        upload(one.view().pointer(), one.view().bytes(), residents.get(t).weights());
        if (one.mask() != null) {
          long n = one.view().elements();
          upload(one.maskIn(0, n), (n + 7) / 8, residents.get(t).maskIn());
        }
        done += one.view().bytes();
      }
      batch.queue(stream);
      MagnitudePrune.Result found = batch.result(stream);
      progress.at(Progress.Phase.SELECT, total, total);
      return found;
    }
  }

  private static BytePointer bytesOf(CudaMemory memory) {
    return memory == null ? null : memory.asBytes();
  }

  private void upload(Pointer from, long bytes, CudaMemory to) {
    BytePointer source = new BytePointer(from);
    for (long done = 0; done < bytes; ) {
      Slot slot = slots[current];
      slot.copied().synchronize();
      long count = Math.min(bytes - done, slot.weights().bytes());
      Pointer.memcpy(slot.weights().pointer(), source.getPointer(done), count);
      to.copyFrom(done, slot.weights().pointer(), count, stream);
      slot.copied().record(stream);
      current = 1 - current;
      done += count;
    }
  }

  @Override
  public float threshold() {
    return result.threshold();
  }

  @Override
  public long step(int index) {
    return PIECE;
  }

  /** {@inheritDoc} All of a tensor's count with its first piece. */
  @Override
  public long make(int index, long from, long count) {
    current = 1 - current;
    if (aheadIndex != index || aheadFrom != from) {
      download(index, from, count);
    }
    slots[current].copied().synchronize();
    aheadIndex = -1;
    long next = from + count;
    if (next < residents.get(index).elements()) {
      current = 1 - current;
      download(index, next, Math.min(PIECE, residents.get(index).elements() - next));
      current = 1 - current;
      aheadIndex = index;
      aheadFrom = next;
    }
    elements = count;
    elementBytes = residents.get(index).bytes();
    return from == 0 ? result.tensors().get(index).pruned() : 0;
  }

  /** Queues the copy of a piece to the current slot. */
  private void download(int index, long from, long count) {
    Resident resident = residents.get(index);
    Slot slot = slots[current];
    resident
        .weights()
        .copyTo(
            from * resident.bytes(), slot.weights().pointer(), count * resident.bytes(), stream);
    if (resident.maskOut() != null) {
      resident.maskOut().copyTo(from / 8, slot.bits().pointer(), (count + 7) / 8, stream);
    }
    slot.copied().record(stream);
  }

  @Override
  public ByteBuffer weights() {
    return first(slots[current].weights(), elements * elementBytes);
  }

  @Override
  public ByteBuffer bits() {
    return first(slots[current].bits(), (elements + 7) / 8);
  }

  private static ByteBuffer first(CudaMemory memory, long bytes) {
    return memory.asBytes().limit(bytes).asByteBuffer();
  }

  @Override
  public void close() {
    while (!owned.isEmpty()) {
      try {
        owned.pop().close();
      } catch (RuntimeException e) {
        throw e;
      } catch (Exception e) {
        throw new IllegalStateException(e); // none of them throws a checked one
      }
    }
  }
}
