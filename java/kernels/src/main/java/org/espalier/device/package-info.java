/**
 * Where memory is: tensors as views of what somebody owns, tensors with memory of their own, mapped files; and CUDA
 * devices with their memory, streams and events, where there is a driver.
 */
package org.espalier.device;
