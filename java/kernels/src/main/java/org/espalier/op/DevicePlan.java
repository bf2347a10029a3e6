package org.espalier.op;

import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_plan;
import org.espalier.device.CudaEvent;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;

/** The plan of an operation over a list of tensors, with its table and workspace on the device. */
final class DevicePlan implements AutoCloseable {
  /** The operation's plan function. */
  interface Planner {
    int plan(esp_cuda_plan plan, Pointer table);
  }

  private final Device device;
  private final esp_cuda_plan plan = Natives.keep(new esp_cuda_plan());
  private CudaMemory table;
  private CudaMemory workspace;

  /** What {@link #replan} has written and no stream has been told to copy; else null. */
  private BytePointer next;

  /** Copied by a stream; the device may read them until {@link #copied} has happened. Else null. */
  private BytePointer sent;

  private CudaEvent copied; // null until there has been another table

  DevicePlan(Device device, Planner planner) {
    this.device = device;
    Status.checkCuda(planner.plan(plan, null));
    table = CudaMemory.allocate(device, plan.table_bytes());
    workspace = zeroed(plan.workspace_bytes());
    try (CudaStream stream = CudaStream.defaultOf(device);
        BytePointer bytes = new BytePointer(Math.max(1, plan.table_bytes()))) {
      Status.checkCuda(planner.plan(plan, bytes));
      table.copyFrom(bytes, plan.table_bytes(), stream);
      stream.synchronize(); // other streams do not wait for the default one
    }
  }

  private CudaMemory zeroed(long bytes) {
    CudaMemory memory = CudaMemory.allocate(device, bytes);
    try (CudaStream stream = CudaStream.defaultOf(device)) {
      memory.zero(stream);
      stream.synchronize();
    }
    return memory;
  }

  /**
   * Plans another list of as many tensors. Where memory that is there suffices, nothing is allocated on the device
   * and nothing waits but for the copy of the table before. For operations whose workspace, after a call, suits every
   * such list.
   */
  void replan(Planner planner) {
    forgetSent();
    Status.checkCuda(planner.plan(plan, null));
    if (table.bytes() < plan.table_bytes()) {
      table.close();
      table = CudaMemory.allocate(device, 2 * plan.table_bytes());
    }
    if (workspace.bytes() < plan.workspace_bytes()) {
      workspace.close();
      workspace = zeroed(2 * plan.workspace_bytes());
    }
    if (next != null) {
      next.close();
    }
    next = Natives.keep(new BytePointer(Math.max(1, plan.table_bytes())));
    Status.checkCuda(planner.plan(plan, next));
  }

  /** Queues the copy of a table that is new. To be called before work is queued. */
  void prepare(CudaStream stream) {
    if (next != null) {
      forgetSent();
      if (copied == null) {
        copied = CudaEvent.create(device);
      }
      table.copyFrom(next, plan.table_bytes(), stream);
      copied.record(stream);
      sent = next;
      next = null;
    }
  }

  private void forgetSent() {
    if (sent != null) {
      copied.synchronize();
      sent.close();
      sent = null;
    }
  }

  esp_cuda_plan plan() {
    return plan;
  }

  Pointer table() {
    return table.pointer();
  }

  Pointer workspace() {
    return workspace.pointer();
  }

  /** Refuses a stream of another device. */
  static void requireOn(Device device, CudaStream stream) {
    if (!stream.device().equals(device)) {
      throw new IllegalArgumentException(
          "a stream of " + stream.device() + " for tensors on " + device);
    }
  }

  @Override
  public void close() {
    plan.close();
    forgetSent();
    if (copied != null) {
      copied.close();
    }
    table.close();
    workspace.close();
    if (next != null) {
      next.close();
    }
  }
}
