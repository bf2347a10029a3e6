package org.espalier.device;

import org.espalier.binding.global.espalier;

/** Element types that kernels compute on. Arithmetic is in F32 or wider. */
public enum DType {
  F32(espalier.ESP_F32, 4),
  BF16(espalier.ESP_BF16, 2),
  F16(espalier.ESP_F16, 2);

  private final int code;
  private final int bytes;

  DType(int code, int bytes) {
    this.code = code;
    this.bytes = bytes;
  }

  /** The {@code esp_dtype} of the C ABI. */
  public int code() {
    return code;
  }

  /** Bytes of an element. */
  public int bytes() {
    return bytes;
  }
}
