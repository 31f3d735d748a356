# Cross-compiles the core (GRADCLIP_CORE_ONLY) for 64-bit Arm with Debian's compiler, and runs its tests
# under qemu (QEMU_LD_PREFIX=/usr/aarch64-linux-gnu has to be set for them). GRADCLIP_ARM64_PACKAGES is a folder with Debian's arm64 packages of Abseil and
# GoogleTest unpacked; `./dev test --aarch64` makes it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
# An RPATH also finds the libraries that libraries need.
set(CMAKE_EXE_LINKER_FLAGS_INIT -Wl,--disable-new-dtags)

list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES GRADCLIP_ARM64_PACKAGES)
set(CMAKE_FIND_ROOT_PATH ${GRADCLIP_ARM64_PACKAGES})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
