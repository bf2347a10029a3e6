package org.espalier.op;

import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_plan;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;

/** The plan of an operation over a list of tensors, with its table and workspace on the device. */
final class DevicePlan implements AutoCloseable {
  /** The operation's plan function. */
  interface Planner {
    int plan(esp_cuda_plan plan, Pointer table);
  }

  private final esp_cuda_plan plan = new esp_cuda_plan();
  private final CudaMemory table;
  private final CudaMemory workspace;

  DevicePlan(Device device, Planner planner) {
    Status.checkCuda(planner.plan(plan, null));
    table = CudaMemory.allocate(device, plan.table_bytes());
    workspace = CudaMemory.allocate(device, plan.workspace_bytes());
    try (CudaStream stream = CudaStream.defaultOf(device);
        BytePointer bytes = new BytePointer(Math.max(1, plan.table_bytes()))) {
      Status.checkCuda(planner.plan(plan, bytes));
      table.copyFrom(bytes, plan.table_bytes(), stream);
      workspace.zero(stream);
      stream.synchronize(); // other streams do not wait for the default one
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
    table.close();
    workspace.close();
  }
}
