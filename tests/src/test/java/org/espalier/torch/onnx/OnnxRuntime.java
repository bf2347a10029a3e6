package org.espalier.torch.onnx;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.format.onnx.OnnxModel;

/** Runs a model in ONNX Runtime with torch tensors, for comparison. */
public final class OnnxRuntime {
  private OnnxRuntime() {}

  public static Map<String, Tensor> run(OnnxModel model, Map<String, Tensor> inputs)
      throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    Map<String, OnnxTensor> given = new HashMap<>();
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(1);
      try (OrtSession session = environment.createSession(model.toBuffer(), options)) {
        for (Map.Entry<String, Tensor> e : inputs.entrySet()) {
          Tensor t = e.getValue().contiguous();
          ByteBuffer data =
              ByteBuffer.allocateDirect(Math.toIntExact(t.nbytes())).order(ByteOrder.nativeOrder());
          Pointer.memcpy(new BytePointer(data), t.data_ptr(), data.capacity());
          given.put(
              e.getKey(),
              OnnxTensor.createTensor(environment, data, t.shape(), javaType(ElementTypes.of(t))));
        }
        Map<String, Tensor> outputs = new LinkedHashMap<>();
        try (OrtSession.Result result = session.run(given)) {
          result.forEach(e -> outputs.put(e.getKey(), tensor((OnnxTensor) e.getValue())));
        }
        return outputs;
      }
    } finally {
      given.values().forEach(OnnxTensor::close);
    }
  }

  private static Tensor tensor(OnnxTensor value) {
    TensorInfo info = value.getInfo();
    ByteBuffer data = value.getByteBuffer();
    TensorOptions options = new TensorOptions(type(info.type));
    if (info.getNumElements() == 0) {
      return torch.zeros(info.getShape(), options);
    }
    ByteBuffer direct = ByteBuffer.allocateDirect(data.remaining()).put(data).flip();
    return torch.from_blob(new Pointer(direct), info.getShape(), options).clone();
  }

  private static OnnxJavaType javaType(ScalarType type) {
    return switch (type) {
      case Float -> OnnxJavaType.FLOAT;
      case Double -> OnnxJavaType.DOUBLE;
      case Half -> OnnxJavaType.FLOAT16;
      case BFloat16 -> OnnxJavaType.BFLOAT16;
      case Char -> OnnxJavaType.INT8;
      case Byte -> OnnxJavaType.UINT8;
      case Short -> OnnxJavaType.INT16;
      case Int -> OnnxJavaType.INT32;
      case Long -> OnnxJavaType.INT64;
      case Bool -> OnnxJavaType.BOOL;
      default -> throw new IllegalArgumentException(type.toString());
    };
  }

  private static ScalarType type(OnnxJavaType type) {
    for (ScalarType t :
        new ScalarType[] {
          ScalarType.Float,
          ScalarType.Double,
          ScalarType.Half,
          ScalarType.BFloat16,
          ScalarType.Char,
          ScalarType.Byte,
          ScalarType.Short,
          ScalarType.Int,
          ScalarType.Long,
          ScalarType.Bool
        }) {
      if (javaType(t) == type) {
        return t;
      }
    }
    throw new IllegalArgumentException(type.toString());
  }
}
