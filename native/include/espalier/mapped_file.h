/*
 * mapped_file: a whole file in the address space, read-only, in one piece whatever its size. Java's own mappings end at
 * 2 GiB and cannot be undone before they are collected.
 *
 * The file must not become shorter while it is mapped: touching a page that is gone ends the process by SIGBUS.
 */
#ifndef ESPALIER_MAPPED_FILE_H
#define ESPALIER_MAPPED_FILE_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Maps the file whose name is the zero-terminated string `path`, in the encoding of the file system. It must be a
 * regular file of exactly `bytes` > 0 bytes. ESP_INVALID_ARGUMENT with the system's reason where that fails.
 */
ESP_API esp_status esp_file_map(const uint8_t* path, int64_t bytes, void** memory);

/* Undoes esp_file_map. */
ESP_API void esp_file_unmap(void* memory, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
