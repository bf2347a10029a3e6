package org.espalier.format.onnx;

import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.FieldDescriptor;
import java.nio.ByteBuffer;

/**
 * A walk over the wire format of a protobuf message that allocates nothing: it finds broken lengths
 * and too deep nesting, and bounds the heap that parsing would take, before anything is parsed. A
 * message of two bytes becomes an object of a hundred, so a small file could otherwise exhaust the
 * heap.
 */
final class WireScan {
  /** The nesting that the protobuf parser itself allows. */
  static final int MAX_DEPTH = 100;

  /** Objects behind a message, a string or an unknown field, in bytes, measured generously. */
  private static final int MESSAGE = 200;

  private static final int STRING = 160;

  /** Numbers are collected in arrays that grow by half: old and new array, at 8 bytes a number. */
  private static final int NUMBER = 20;

  private final ByteBuffer in;
  private final long heapLimit;
  private long heap;

  private WireScan(ByteBuffer in, long heapLimit) {
    this.in = in;
    this.heapLimit = heapLimit;
  }

  /**
   * Returns what is wrong with {@code message} as a message of type {@code type}, or null if it can
   * be parsed within {@code heapLimit} bytes of heap.
   */
  static String problem(ByteBuffer message, Descriptor type, long heapLimit) {
    WireScan scan = new WireScan(message.duplicate(), heapLimit);
    try {
      scan.message(type, message.limit(), 0);
      return null;
    } catch (Malformed e) {
      return e.getMessage();
    }
  }

  private void message(Descriptor type, int end, int depth) throws Malformed {
    if (depth > MAX_DEPTH) {
      throw new Malformed("messages are nested deeper than " + MAX_DEPTH + at());
    }
    while (in.position() < end) {
      long tag = varint(end);
      int wireType = (int) (tag & 7);
      long number = tag >>> 3;
      if (number == 0 || number > 0x1FFFFFFF) {
        throw new Malformed("field number " + number + at());
      }
      FieldDescriptor field = type.findFieldByNumber((int) number);
      switch (wireType) {
        case 0 -> {
          varint(end);
          charge(NUMBER + (field == null ? STRING : 0));
        }
        case 1 -> skip(8, field, end);
        case 5 -> skip(4, field, end);
        case 2 -> {
          long length = varint(end);
          if (length < 0 || length > end - in.position()) {
            throw new Malformed(
                "a field of "
                    + Long.toUnsignedString(length)
                    + " bytes in "
                    + (end - in.position())
                    + at());
          }
          lengthDelimited(field, (int) length, depth);
        }
        default -> throw new Malformed("wire type " + wireType + at());
      }
    }
  }

  private void lengthDelimited(FieldDescriptor field, int length, int depth) throws Malformed {
    int end = in.position() + length;
    if (field == null) {
      charge(STRING);
    } else {
      switch (field.getJavaType()) {
        case MESSAGE -> {
          charge(MESSAGE);
          message(field.getMessageType(), end, depth + 1);
        }
        case STRING, BYTE_STRING -> charge(STRING);
        case FLOAT -> charge((long) NUMBER * (length / 4));
        case DOUBLE -> charge((long) NUMBER * (length / 8));
        default -> {
          for (int i = in.position(); i < end; i++) {
            if (in.get(i) >= 0) {
              charge(NUMBER);
            }
          }
        }
      }
    }
    in.position(end);
  }

  private void skip(int bytes, FieldDescriptor field, int end) throws Malformed {
    if (end - in.position() < bytes) {
      throw new Malformed("the message ends inside a number" + at());
    }
    in.position(in.position() + bytes);
    charge(NUMBER + (field == null ? STRING : 0));
  }

  private long varint(int end) throws Malformed {
    long value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (in.position() >= end) {
        throw new Malformed("the message ends inside a number" + at());
      }
      byte b = in.get();
      value |= (long) (b & 0x7F) << shift;
      if (b >= 0) {
        return value;
      }
    }
    throw new Malformed("a number of more than 10 bytes" + at());
  }

  private void charge(long bytes) throws Malformed {
    heap += bytes;
    if (heap > heapLimit) {
      throw new Malformed(
          "it has so many parts that reading them takes more than "
              + (heapLimit >> 20)
              + " MiB, half of this JVM's heap (-Xmx)");
    }
  }

  private String at() {
    return " at byte " + in.position();
  }

  private static final class Malformed extends Exception {
    private static final long serialVersionUID = 1L;

    Malformed(String message) {
      super(message, null, false, false);
    }
  }
}
