package org.espalier.store;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collection;
import java.util.HexFormat;
import org.espalier.InputException;
import org.espalier.format.Sha256;

/**
 * Ed25519 keys (RFC 8032) as PEM files: {@code PRIVATE KEY} (PKCS #8) to sign, {@code PUBLIC KEY}
 * (X.509) to check. {@code openssl genpkey -algorithm ed25519} makes the one and {@code openssl pkey
 * -pubout} the other. The arithmetic is the JDK's.
 */
public final class SigningKey {
  private static final int MAX_PEM_BYTES = 1 << 16;

  private final PrivateKey key;

  private SigningKey(PrivateKey key) {
    this.key = key;
  }

  /** A key from elsewhere. */
  public static SigningKey of(PrivateKey key) {
    if (!Arrays.asList("Ed25519", "EdDSA").contains(key.getAlgorithm())) {
      throw new IllegalArgumentException("the key is for " + key.getAlgorithm() + ", not Ed25519");
    }
    return new SigningKey(key);
  }

  /**
   * Reads a private key.
   *
   * @throws InputException if the file is no PEM file with an Ed25519 private key
   */
  public static SigningKey read(Path pem) {
    try {
      return of(
          KeyFactory.getInstance("Ed25519")
              .generatePrivate(new PKCS8EncodedKeySpec(der(pem, "PRIVATE KEY"))));
    } catch (GeneralSecurityException e) {
      throw notAKey(pem, "private", e);
    }
  }

  /**
   * Reads a public key.
   *
   * @throws InputException if the file is no PEM file with an Ed25519 public key
   */
  public static PublicKey readPublic(Path pem) {
    try {
      return KeyFactory.getInstance("Ed25519")
          .generatePublic(new X509EncodedKeySpec(der(pem, "PUBLIC KEY")));
    } catch (GeneralSecurityException e) {
      throw notAKey(pem, "public", e);
    }
  }

  /** A short name of a public key: the first 16 hexadecimal digits of its encoding's SHA-256. */
  public static String id(PublicKey key) {
    return HexFormat.of().formatHex(Sha256.digest().digest(key.getEncoded()), 0, 8);
  }

  /** Whether what this key signs is trusted by who trusts some keys. */
  public boolean isOneOf(Collection<PublicKey> keys) {
    byte[] message = {};
    byte[] signature = sign(message);
    return keys.stream().anyMatch(key -> verifies(key, message, signature));
  }

  byte[] sign(byte[] message) {
    try {
      Signature signature = Signature.getInstance("Ed25519");
      signature.initSign(key);
      signature.update(message);
      return signature.sign();
    } catch (GeneralSecurityException e) {
      throw new IllegalStateException("the key does not sign", e);
    }
  }

  static boolean verifies(PublicKey key, byte[] message, byte[] signature) {
    try {
      Signature verifier = Signature.getInstance("Ed25519");
      verifier.initVerify(key);
      verifier.update(message);
      return verifier.verify(signature);
    } catch (GeneralSecurityException e) {
      return false; // bytes that are no signature at all
    }
  }

  private static byte[] der(Path pem, String kind) {
    try {
      if (Files.isRegularFile(pem) && Files.size(pem) <= MAX_PEM_BYTES) {
        String text = Files.readString(pem, StandardCharsets.US_ASCII);
        String begin = "-----BEGIN " + kind + "-----";
        int from = text.indexOf(begin);
        int to = text.indexOf("-----END " + kind + "-----");
        if (from >= 0 && to > from) {
          return Base64.getMimeDecoder().decode(text.substring(from + begin.length(), to));
        }
      } else if (!Files.exists(pem)) {
        throw new InputException("there is no key file " + pem);
      }
    } catch (IOException | IllegalArgumentException e) {
      throw new InputException("cannot read the key " + pem + ": " + e.getMessage(), e);
    }
    throw new InputException(
        pem
            + " is not a PEM file with a block '"
            + kind
            + "'; openssl genpkey -algorithm ed25519"
            + " makes a private key, openssl pkey -pubout its public one");
  }

  private static InputException notAKey(Path pem, String kind, Exception e) {
    return new InputException(pem + " holds no Ed25519 " + kind + " key", e);
  }
}
